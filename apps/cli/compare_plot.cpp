#include "apps/cli/compare_plot.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace turboesm::cli {
namespace {

constexpr double kWidth = 860, kHeight = 560, kLeft = 80, kRight = 30, kTop = 30, kBottom = 60;

// A linear map from [from_low, from_high] to pixels.
struct Axis {
  double low, high, first, last;
  double operator()(double value) const { return first + (value - low) / (high - low) * (last - first); }
};

std::string text(double x, double y, std::string_view anchor, std::string_view what, int size = 12) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{}\">{}</text>\n", x, y, anchor,
                     size, what);
}

std::string line(double x1, double y1, double x2, double y2) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n", x1, y1, x2,
                     y2);
}

std::string_view colour(std::string_view preset) {
  if (preset.starts_with("turboquant")) return "#2a78b5";
  if (preset.starts_with("turboesm")) return "#c2452d";
  if (preset.starts_with("turbo")) return "#2b8a3e";
  if (preset.starts_with("wht")) return "#9c6b1c";
  return "#666666";
}

}  // namespace

std::string compare_plot(const std::vector<KvQuality>& qualities) {
  std::vector<const KvQuality*> points;
  for (const KvQuality& q : qualities)
    if (q.bits_per_value < 8 && q.residue.kl_mean > 0) points.push_back(&q);
  double low_bits = 2, high_bits = 5, low = 0, high = -1;
  for (const KvQuality* q : points) {
    low_bits = std::min(low_bits, std::floor(q->bits_per_value));
    high_bits = std::max(high_bits, std::ceil(q->bits_per_value));
    low = std::min(low, std::floor(std::log10(q->residue.kl_mean)));
    high = std::max(high, std::ceil(std::log10(q->residue.kl_mean)));
  }
  const Axis x{low_bits, high_bits, kLeft, kWidth - kRight}, y{low, high, kHeight - kBottom, kTop};

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kWidth, kHeight);
  for (double bits = low_bits; bits <= high_bits; bits += 0.5) {
    svg += line(x(bits), y(low), x(bits), y(high));
    svg += text(x(bits), y(low) + 18, "middle", fmt::format("{}", bits));
  }
  for (double power = low; power <= high; ++power) {
    svg += line(kLeft, y(power), kWidth - kRight, y(power));
    svg += text(kLeft - 8, y(power) + 4, "end", fmt::format("{}", std::pow(10.0, power)));
  }
  svg +=
      text((kLeft + kWidth - kRight) / 2, kHeight - 14, "middle", "stored bits a value (scales and signs counted)", 14);
  svg += fmt::format(
      "<text transform=\"translate(20 {:.1f}) rotate(-90)\" text-anchor=\"middle\" font-size=\"14\">mean logit KL at "
      "the "
      "residue, nats</text>\n",
      kHeight / 2);
  for (const KvQuality* q : points) {
    const double px = x(q->bits_per_value), py = y(std::log10(q->residue.kl_mean));
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", px, py, colour(q->preset));
    svg += text(px + 7, py + 4, "start", q->preset, 11);
  }
  return svg + "</svg>\n";
}

}  // namespace turboesm::cli
