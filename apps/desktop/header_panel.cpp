#include <fmt/format.h>

#include "apps/desktop/ui.h"
#include "runtime/format.h"

namespace turboesm::desktop {
namespace {

void draw_device(Ui& ui) {
  Controller& c = ui.controller;
  const State& state = c.state;
  const std::string shown = state.opened ? state.opened->device.name : c.choices.device;
  ImGui::SetNextItemWidth(ui.px(330));
  if (ImGui::BeginCombo("##device", shown.c_str(), ImGuiComboFlags_HeightLarge)) {
    if (ImGui::Selectable("auto: the fastest there is", c.choices.device == "auto"))
      c.choose_device("auto", c.choices.dtype);
    for (size_t i = 0; state.devices && i < state.devices->devices.size(); ++i) {
      const DeviceListing& device = state.devices->devices[i];
      const std::string problem =
          device.problem.empty() ? "" : fmt::format("\n      cannot be used: {}", device.problem);
      const std::string text =
          fmt::format("{}   {}\n      {}, {}, {}{}", device.info.spec, device.info.name, name_of(device.info.kind),
                      device.info.driver, format_bytes(device.info.memory_bytes), problem);
      if (ImGui::Selectable(text.c_str(), c.choices.device == device.info.spec,
                            device.problem.empty() ? 0 : ImGuiSelectableFlags_Disabled))
        c.choose_device(device.info.spec, c.choices.dtype);
    }
    ImGui::EndCombo();
  }
  ui.place("device");
  if (state.devices)
    for (const DeviceListing& device : state.devices->devices)
      ui.drawn.value("devices/" + device.info.spec, device.info.name);
}

}  // namespace

void draw_header(Ui& ui) {
  Controller& c = ui.controller;
  const State& state = c.state;
  constexpr std::string_view kDtypes[] = {"f32", "f16", "bf16"};
  ImGui::PushFont(fonts().title);
  ImGui::AlignTextToFramePadding();
  ImGui::PushStyleColor(ImGuiCol_Text, packed(kAccent));
  ImGui::TextUnformatted("turboesm");
  ImGui::PopStyleColor();
  ImGui::PopFont();

  const auto caption = [&](const char* text, float width) {
    flow(ui, width, 18);
    ImGui::AlignTextToFramePadding();
    faint(text);
    ImGui::SameLine();
  };
  caption("Device", 400);
  draw_device(ui);
  caption("Type", 130);
  ImGui::SetNextItemWidth(ui.px(80));
  std::string dtype = c.choices.dtype;
  if (choose(ui, "##dtype", "dtype", dtype, kDtypes)) c.choose_device(c.choices.device, dtype);
  caption("Cache", 230);
  ImGui::SetNextItemWidth(ui.px(170));
  std::vector<std::string_view> presets;
  for (const KvPresetRow& row : kv_presets()) presets.push_back(row.name);
  std::string preset = c.choices.preset;
  if (choose(ui, "##preset", "preset", preset, presets)) c.choose_preset(preset);
  caption("Model", 300);
  ImGui::SetNextItemWidth(-1);
  static const std::string kDefault = "the one that ships; drop a model's folder here or type its path";
  if (input_text("##model", c.choices.model, kDefault.c_str())) c.open_model(c.choices.model);
  ui.place("model");

  if (!state.opened) {
    faint(state.working ? "opening the device and the model …" : "no device or model is open");
    return;
  }
  const event::Opened& opened = *state.opened;
  ui.drawn.value("opened/device", opened.device.spec);
  ui.drawn.value("opened/driver", opened.device.driver);
  ui.drawn.value("opened/model", opened.asked.model.string());
  ui.drawn.value("opened/parameters", opened.config.parameter_count());
  ui.drawn.value("opened/dtype", name_of(opened.dtype));
  sentence(fmt::format("{}   {}, {}      {}: {} parameters, {} layers, hidden {}, {} heads of {}, in {}",
                       opened.device.spec, name_of(opened.device.kind), opened.device.driver,
                       (opened.asked.model / "").parent_path().filename().string(),
                       format_count(double(opened.config.parameter_count())), opened.config.layers,
                       opened.config.hidden, opened.config.heads, opened.config.head_dim(), name_of(opened.dtype)));
}

}  // namespace turboesm::desktop
