// A program outside the project's tree: uses the installed headers and library.
#include <cstdio>

#include "model/tokenizer.h"
#include "runtime/operations.h"

int main() {
  const auto encoded = turboesm::Tokenizer::esm2().encode("MKV", "example");
  const bool right = encoded.ids == std::vector<int32_t>{0, 20, 15, 7, 2};  // <cls> M K V <eos>
  std::printf("%zu tokens\n", encoded.ids.size());
  return right ? 0 : 1;
}
