// The Vulkan Memory Allocator, which takes its functions from volk.
#include "runtime/vulkan/vk.h"

#if defined(__GNUC__)  // clang included; the header is not ours to fix
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#if defined(__clang__)
#pragma GCC diagnostic ignored "-Wnullability-completeness"
#endif
#endif
#define VMA_IMPLEMENTATION
#include "runtime/vulkan/vma.h"
