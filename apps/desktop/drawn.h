#pragma once

#include <array>
#include <map>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace turboesm::desktop {

// What the present frame shows, by label: every number and text in full, however it was rounded for the screen, and
// where each thing that can be pointed at lies. Panels fill it while they draw; scripts and tests read it.
class Drawn {
 public:
  struct Rectangle {
    float left = 0, top = 0, right = 0, bottom = 0;
  };

  bool recorded = true;  // else nobody will read it

  void clear() { values_ = nlohmann::json::object(), places_.clear(); }
  template <class T>
  void value(std::string_view label, const T& value) {
    if (recorded) values_[std::string(label)] = value;
  }
  void place(std::string_view label, const Rectangle& place) {
    if (recorded) places_[std::string(label)] = place;
  }

  const nlohmann::json& values() const { return values_; }  // an object
  const Rectangle* find(std::string_view label) const {     // null: not on this frame
    const auto found = places_.find(label);
    return found == places_.end() ? nullptr : &found->second;
  }

 private:
  nlohmann::json values_ = nlohmann::json::object();
  std::map<std::string, Rectangle, std::less<>> places_;
};

}  // namespace turboesm::desktop
