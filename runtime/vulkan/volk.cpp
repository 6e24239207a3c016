// The Vulkan loader's functions: the loader is opened at run time, so that the program starts without one.
#define VOLK_IMPLEMENTATION
#include <volk.h>
