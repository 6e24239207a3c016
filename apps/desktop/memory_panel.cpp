#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "apps/desktop/ui.h"
#include "runtime/format.h"

namespace turboesm::desktop {
namespace {

constexpr Colour kOthers{92, 102, 120}, kFree{38, 45, 60};
constexpr std::array kLabels{MemoryLabel::weights, MemoryLabel::activations, MemoryLabel::kv, MemoryLabel::staging};

const char* caption(MemoryLabel label) {
  switch (label) {
    case MemoryLabel::weights: return "weights";
    case MemoryLabel::activations: return "activations";
    case MemoryLabel::kv: return "KV cache";
    case MemoryLabel::staging: return "staging";
  }
  return "";
}

// The parts of the budget side by side; where all are small against it, so are they here, and a second bar below
// shows them by themselves.
void draw_bar(Ui& ui, std::span<const std::pair<Colour, uint64_t>> parts, uint64_t whole, float height) {
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float width = ImGui::GetContentRegionAvail().x;
  ImDrawList& list = *ImGui::GetWindowDrawList();
  list.AddRectFilled(at, {at.x + width, at.y + height}, packed(kFree), ui.px(4));
  float left = at.x;
  for (const auto& [colour, bytes] : parts) {
    const float right =
        std::min(at.x + width, left + float(double(bytes) / double(std::max<uint64_t>(whole, 1)) * width));
    if (right > left) list.AddRectFilled({left, at.y}, {right, at.y + height}, packed(colour));
    left = right;
  }
  ImGui::Dummy({width, height});
}

void row(Ui& ui, Colour colour, const char* name, std::string_view label, uint64_t bytes) {
  ImGui::TableNextRow();
  ImGui::TableNextColumn();
  swatch(colour, name);
  ImGui::TableNextColumn();
  ui.bytes(label, bytes);
  ImGui::TableNextColumn();
  faint(grouped(bytes));
}

void draw_history(Ui& ui, const std::deque<MemorySample>& history, float height) {
  const ImVec2 at = ImGui::GetCursorScreenPos();
  const float whole = height;
  height -= ui.px(18);  // the axis below
  const float width = ImGui::GetContentRegionAvail().x;
  ImDrawList& list = *ImGui::GetWindowDrawList();
  list.AddRectFilled(at, {at.x + width, at.y + height}, packed({16, 20, 28}), ui.px(4));
  uint64_t most = 1;
  for (const MemorySample& sample : history) {
    uint64_t total = 0;
    for (const uint64_t bytes : sample.bytes) total += bytes;
    most = std::max(most, total);
  }
  const double top = double(most) * 1.3, now = history.empty() ? 0 : history.back().seconds;
  const auto x = [&](double seconds) { return at.x + width * float(1 - (now - seconds) / State::kHistorySeconds); };
  const auto y = [&](double bytes) { return at.y + height * float(1 - bytes / top); };
  for (size_t i = 0; i + 1 < history.size(); ++i) {
    double below = 0;
    const float left = x(history[i].seconds), right = x(history[i + 1].seconds);
    for (const MemoryLabel label : kLabels) {
      const double bytes = double(history[i].bytes[size_t(label)]);
      if (bytes > 0) list.AddRectFilled({left, y(below + bytes)}, {right, y(below)}, packed(colour_of(label), 0.85f));
      below += bytes;
    }
  }
  ui.drawn.value("memory/history/samples", history.size());
  ui.drawn.value("memory/history/most", most);
  text_at({at.x + ui.px(6), at.y + ui.px(10)}, fonts().small, packed(kFaint), format_bytes(most));
  text_at({at.x + ui.px(6), at.y + height + ui.px(9)}, fonts().small, packed(kFaint), "60 s ago");
  text_at({at.x + width - ui.px(6), at.y + height + ui.px(9)}, fonts().small, packed(kFaint), "now", 1);
  ImGui::Dummy({width, whole});
}

void draw_cache(Ui& ui, const Generation& g) {
  const double share = g.cache_capacity ? double(g.cached_tokens) / double(g.cache_capacity) : 0;
  title(g.running ? "KV cache, filling" : "KV cache of the last run");
  ui.drawn.value("cache/preset", g.preset);
  ui.drawn.value("cache/tokens", g.cached_tokens);
  ui.drawn.value("cache/capacity", g.cache_capacity);
  ui.drawn.value("cache/bytes", g.cache_bytes);
  const std::array part{std::pair{colour_of(MemoryLabel::kv), uint64_t(share * 1e6)}};
  draw_bar(ui, part, 1000000, ui.px(14));
  sentence(fmt::format("{}: {} of {} tokens in {}", g.preset, grouped(g.cached_tokens), grouped(g.cache_capacity),
                       format_bytes(g.cache_bytes)));
}

}  // namespace

void draw_memory_panel(Ui& ui) {
  const State& state = ui.controller.state;
  if (!state.memory || !state.opened) {
    title("Device memory");
    empty_state("Nothing is open", "Choose a device and a model above.");
    return;
  }
  const MemoryReport& memory = *state.memory;
  title("Device memory, now");
  const uint64_t budget = memory.limit_bytes(), others = memory.other_bytes();
  std::vector<std::pair<Colour, uint64_t>> parts;
  for (const MemoryLabel label : kLabels) parts.emplace_back(colour_of(label), memory[label].bytes);
  if (others) parts.emplace_back(kOthers, others);
  draw_bar(ui, parts, budget, ui.px(20));
  sentence(fmt::format("of {} that {} this program", format_bytes(budget),
                       state.opened->device.kind == DeviceKind::cpu ? "there is for" : "the driver grants"));
  ui.drawn.value("memory/budget", budget);
  draw_bar(ui, parts, memory.total.bytes + others, ui.px(8));
  ImGui::Spacing();

  if (ImGui::BeginTable("memory", 3, ImGuiTableFlags_SizingFixedFit | ImGuiTableFlags_RowBg)) {
    for (const MemoryLabel label : kLabels)
      row(ui, colour_of(label), caption(label), fmt::format("memory/{}", name_of(label)), memory[label].bytes);
    if (others) row(ui, kOthers, "driver's own", "memory/others", others);
    row(ui, kFree, "free", "memory/free", memory.free_bytes());
    ImGui::EndTable();
  }
  ui.drawn.value("memory/total", memory.total.bytes);
  ui.drawn.value("memory/allocations", memory.total.count);
  ui.drawn.value("memory/driver", memory.driver_bytes);
  sentence(fmt::format("{} in {} allocations, at most {} so far", format_bytes(memory.total.bytes), memory.total.count,
                       format_bytes(memory.total.peak)));
  ImGui::Dummy({0, ui.px(8)});
  title("The last minute");
  const float room = ImGui::GetContentRegionAvail().y - ui.px(state.generation ? 96 : 12);
  draw_history(ui, state.history, std::clamp(room, ui.px(80), ui.px(460)));
  ImGui::Dummy({0, ui.px(8)});
  if (state.generation) draw_cache(ui, *state.generation);
}

}  // namespace turboesm::desktop
