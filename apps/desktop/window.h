#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <imgui.h>

#include "apps/desktop/image.h"

struct GLFWwindow;

namespace turboesm::desktop {

struct WindowOptions {
  int width = 1600, height = 1000;
  float scale = 0;  // of text and all sizes; 0: the display's
  bool validation = false;
};

// The window, the Dear ImGui context that lives in it, and what the user does to them. One at a time.
class Window {
 public:
  // Error (device) where there is no display or nothing that can draw on it.
  explicit Window(const WindowOptions& options);
  ~Window();
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  bool close_requested() const;
  float scale() const { return scale_; }
  std::string device_name() const;

  // One frame: takes input, and between these two the interface is built; the second draws it, and hands its pixels
  // back where they are asked for (nothing if the window could not be drawn to just now).
  // `lively`: something moves without the user; else frames are drawn when there is input, and seldom without.
  void begin_frame(bool lively);
  std::optional<Image> end_frame(bool capture);

  // Files dropped on the window since the last call.
  std::vector<std::filesystem::path> take_dropped();
  // What the validation layers have said since the last call.
  std::vector<std::string> take_messages();

  // Keys pressed since the last call, as GLFW numbers them: what shortcuts are made of. Text fields get them, too.
  struct KeyPress {
    int key = 0;
    bool control = false;
  };
  std::vector<KeyPress> take_keys();

  void resize(int width, int height);

  // Input as if from the user, from the next frame on. A script's mouse stays where it was put, the user's is ignored.
  void move_mouse(ImVec2 position);
  void press_mouse(bool down);
  void press_key(int key, bool control, bool down);
  void type(char32_t character);

 private:
  struct Drawing;
  static void on_key(GLFWwindow* handle, int key, int scancode, int action, int modifiers);
  static void on_drop(GLFWwindow* handle, int count, const char** paths);
  void place_script_mouse();

  GLFWwindow* handle_ = nullptr;
  float scale_ = 1;
  double restless_until_ = 0;  // seconds of GLFW's clock
  std::unique_ptr<Drawing> drawing_;
  std::vector<std::filesystem::path> dropped_;
  std::vector<KeyPress> keys_;
  std::optional<ImVec2> script_mouse_;
  bool script_mouse_down_ = false;
};

}  // namespace turboesm::desktop
