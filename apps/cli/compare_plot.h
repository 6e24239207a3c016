#pragma once

#include <string>
#include <vector>

#include "model/compare.h"

namespace turboesm::cli {

// An SVG picture: logit KL at the residues (logarithmic) against stored bits a value, one labelled point a preset;
// presets of 8 bits and more and controls are left out.
std::string compare_plot(const std::vector<KvQuality>& qualities);

}  // namespace turboesm::cli
