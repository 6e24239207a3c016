// A vertex of the user interface: from pixels to clip space.
#version 450

layout(location = 0) in vec2 position;  // pixels from the window's upper left corner
layout(location = 1) in vec2 uv;        // in the font's texture
layout(location = 2) in vec4 colour;

layout(push_constant) uniform Push {
  vec2 scale, translation;  // clip = position * scale + translation
};

layout(location = 0) out vec2 fragment_uv;
layout(location = 1) out vec4 fragment_colour;

void main() {
  fragment_uv = uv;
  fragment_colour = colour;
  gl_Position = vec4(position * scale + translation, 0, 1);
}
