#pragma once

#include <cstdint>
#include <string>

// How sizes, counts and times are written for people.
namespace turboesm {

// "1.5 GiB", "312 KiB"; "12.3 k", "4.56 M"; "1 h 02 min", "3 min 20 s", "4 s".
std::string format_bytes(uint64_t bytes);
std::string format_count(double count);
std::string format_duration(double seconds);

}  // namespace turboesm
