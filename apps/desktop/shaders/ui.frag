// A fragment of the user interface: its colour times the font texture's coverage.
#version 450

layout(set = 0, binding = 0) uniform sampler2D coverage;  // one channel

layout(location = 0) in vec2 fragment_uv;
layout(location = 1) in vec4 fragment_colour;

layout(location = 0) out vec4 colour;

void main() { colour = fragment_colour * vec4(1, 1, 1, texture(coverage, fragment_uv).r); }
