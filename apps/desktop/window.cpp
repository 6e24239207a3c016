#include "apps/desktop/window.h"

#include <algorithm>
#include <utility>

#define GLFW_INCLUDE_NONE
#include <GLFW/glfw3.h>
#include <backends/imgui_impl_glfw.h>

#include "apps/desktop/renderer.h"
#include "apps/desktop/theme.h"

namespace turboesm::desktop {
namespace {

constexpr double kFrameInterval = 1.0 / 60, kRestingInterval = 0.1, kRestless = 0.5;  // seconds

std::string last_glfw_error() {
  const char* text = nullptr;
  glfwGetError(&text);
  return text ? text : "no reason given";
}

// Text and sizes in units of the window's coordinates: where the system already scales these (macOS, Wayland), their
// pixels are finer and ImGui's stay as they are.
float display_scale(GLFWwindow* window) {
  float x = 1, y = 1;
  glfwGetWindowContentScale(window, &x, &y);
  int width = 1, height = 1, pixels_x = 1, pixels_y = 1;
  glfwGetWindowSize(window, &width, &height);
  glfwGetFramebufferSize(window, &pixels_x, &pixels_y);
  return width > 0 && pixels_x > 0 ? std::clamp(x * float(width) / float(pixels_x), 0.5f, 4.0f) : 1;
}

}  // namespace

struct Window::Drawing {
  Graphics graphics;
  Swapchain swapchain;
  Renderer renderer;
  Drawing(GLFWwindow* window, bool validation, VkExtent2D size)
      : graphics(window, validation), swapchain(graphics, size), renderer(graphics, swapchain.render_pass()) {}
};

Window::Window(const WindowOptions& options) {
  if (!glfwInit()) throw_error(ErrorKind::device, "no window can be opened here: {}", last_glfw_error());
  glfwWindowHint(GLFW_CLIENT_API, GLFW_NO_API);
  handle_ = glfwCreateWindow(options.width, options.height, "turboesm", nullptr, nullptr);
  if (!handle_) {
    const std::string reason = last_glfw_error();
    glfwTerminate();
    throw_error(ErrorKind::device, "no window can be opened here: {}", reason);
  }
  glfwSetWindowUserPointer(handle_, this);
  glfwSetDropCallback(handle_, on_drop);
  glfwSetKeyCallback(handle_, on_key);  // ImGui's, installed later, calls it first
  glfwSetWindowSizeLimits(handle_, 640, 400, GLFW_DONT_CARE, GLFW_DONT_CARE);
  scale_ = options.scale > 0 ? options.scale : display_scale(handle_);

  IMGUI_CHECKVERSION();
  ImGui::CreateContext();
  ImGuiIO& io = ImGui::GetIO();
  io.IniFilename = nullptr;  // there is one layout; what the user chose is in Choices
  io.ConfigFlags |= ImGuiConfigFlags_NavEnableKeyboard;
  io.BackendFlags |= ImGuiBackendFlags_RendererHasVtxOffset;
  apply_theme(scale_);
  ImGui_ImplGlfw_InitForOther(handle_, true);
  try {
    drawing_ = std::make_unique<Drawing>(handle_, options.validation,
                                         VkExtent2D{uint32_t(options.width), uint32_t(options.height)});
  } catch (...) {
    ImGui_ImplGlfw_Shutdown();
    ImGui::DestroyContext();
    glfwDestroyWindow(handle_);
    glfwTerminate();
    throw;
  }
}

Window::~Window() {
  drawing_.reset();
  ImGui_ImplGlfw_Shutdown();
  ImGui::DestroyContext();
  glfwDestroyWindow(handle_);
  glfwTerminate();
}

bool Window::close_requested() const { return glfwWindowShouldClose(handle_); }

std::string Window::device_name() const { return drawing_->graphics.name; }

std::vector<std::string> Window::take_messages() { return drawing_->graphics.take_messages(); }

void Window::on_drop(GLFWwindow* handle, int count, const char** paths) {
  auto& dropped = static_cast<Window*>(glfwGetWindowUserPointer(handle))->dropped_;
  dropped.insert(dropped.end(), paths, paths + count);
}

void Window::on_key(GLFWwindow* handle, int key, int, int action, int modifiers) {
  if (action != GLFW_RELEASE)
    static_cast<Window*>(glfwGetWindowUserPointer(handle))->keys_.push_back({key, (modifiers & GLFW_MOD_CONTROL) != 0});
}

std::vector<Window::KeyPress> Window::take_keys() { return std::exchange(keys_, {}); }

std::vector<std::filesystem::path> Window::take_dropped() { return std::exchange(dropped_, {}); }

void Window::begin_frame(bool lively) {
  const double begin = glfwGetTime();
  const bool resting = !lively && begin > restless_until_;
  const double patience = resting ? kRestingInterval : kFrameInterval;
  glfwWaitEventsTimeout(patience);
  // What came before the time was up is input, to which the interface answers over several frames.
  if (resting && glfwGetTime() - begin < 0.9 * patience) restless_until_ = glfwGetTime() + kRestless;
  ImGui_ImplGlfw_NewFrame();
  place_script_mouse();
  ImGui::NewFrame();
}

std::optional<Image> Window::end_frame(bool capture) {
  ImGui::Render();
  int width = 0, height = 0;
  glfwGetFramebufferSize(handle_, &width, &height);
  if (width == 0 || height == 0) {  // minimized
    glfwWaitEventsTimeout(0.1);
    return std::nullopt;
  }
  const ImDrawData& data = *ImGui::GetDrawData();
  return drawing_->swapchain.frame({uint32_t(width), uint32_t(height)}, capture,
                                   [&](VkCommandBuffer commands, uint32_t in_flight, VkExtent2D extent) {
                                     drawing_->renderer.draw(data, commands, in_flight, extent);
                                   });
}

void Window::resize(int width, int height) { glfwSetWindowSize(handle_, width, height); }

void Window::move_mouse(ImVec2 position) { script_mouse_ = position; }

void Window::press_mouse(bool down) { script_mouse_down_ = down; }

// Dear ImGui takes input as events from 1.87 on, and as the state of the moment before.
void Window::place_script_mouse() {
  if (!script_mouse_) return;
  ImGuiIO& io = ImGui::GetIO();
#if IMGUI_VERSION_NUM >= 18700
  io.AddMousePosEvent(script_mouse_->x, script_mouse_->y);
  io.AddMouseButtonEvent(0, script_mouse_down_);
#else
  io.MousePos = *script_mouse_;
  io.MouseDown[0] = script_mouse_down_;
#endif
}

void Window::press_key(int key, bool control, bool down) {
  const int action = down ? GLFW_PRESS : GLFW_RELEASE;
  if (control && down) ImGui_ImplGlfw_KeyCallback(handle_, GLFW_KEY_LEFT_CONTROL, 0, action, GLFW_MOD_CONTROL);
  ImGui_ImplGlfw_KeyCallback(handle_, key, 0, action, control ? GLFW_MOD_CONTROL : 0);
  if (control && !down) ImGui_ImplGlfw_KeyCallback(handle_, GLFW_KEY_LEFT_CONTROL, 0, action, 0);
#if IMGUI_VERSION_NUM >= 18900  // whose GLFW back end asks the keyboard itself for the modifiers
  ImGui::GetIO().AddKeyEvent(ImGuiMod_Ctrl, control && down);
#endif
}

void Window::type(char32_t character) { ImGui_ImplGlfw_CharCallback(handle_, unsigned(character)); }

}  // namespace turboesm::desktop
