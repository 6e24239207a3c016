# Everything the build takes from outside. scripts/setup.sh installs what a distribution has and puts the rest (headers
# and tools that are newer than Debian 12's) into TURBOESM_DEPS_DIR, which is searched before the system.
if(DEFINED ENV{XDG_CACHE_HOME})
  set(default_deps_dir $ENV{XDG_CACHE_HOME}/turboesm/deps)
else()
  set(default_deps_dir $ENV{HOME}/.cache/turboesm/deps)
endif()
set(TURBOESM_DEPS_DIR ${default_deps_dir} CACHE PATH "Dependencies that scripts/setup.sh unpacked or built")

if(TURBOESM_PORTABLE)
  set(CMAKE_FIND_LIBRARY_SUFFIXES .a)
  set(ZLIB_USE_STATIC_LIBS ON)
endif()

find_package(Threads REQUIRED)
find_package(fmt CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(Eigen3 3.4 CONFIG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(MINIZIP REQUIRED IMPORTED_TARGET minizip)

# Debian and Ubuntu have fmt as a shared library only; a portable program has it compiled in.
if(TURBOESM_PORTABLE)
  set(TURBOESM_FMT fmt::fmt-header-only)
else()
  set(TURBOESM_FMT fmt::fmt)
endif()

# turboesm_vulkan_headers: Vulkan, volk and VMA are headers to us; the loader is opened at run time, never linked.
if("vulkan" IN_LIST TURBOESM_BACKENDS)
  set(oldest_vulkan_headers 275)  # 1.3.275 (Ubuntu 24.04): VK_KHR_cooperative_matrix and everything of Vulkan 1.3
  foreach(header IN ITEMS vulkan/vulkan_core.h volk.h volk.c vk_mem_alloc.h)
    string(MAKE_C_IDENTIFIER "TURBOESM_PATH_${header}" variable)
    find_path(${variable} ${header} HINTS ${TURBOESM_DEPS_DIR}/include)
    if(NOT ${variable})
      message(FATAL_ERROR "${header} was not found: run scripts/setup.sh, or name its folder with -D${variable}=")
    endif()
    list(APPEND vulkan_include_dirs ${${variable}})
  endforeach()
  list(REMOVE_DUPLICATES vulkan_include_dirs)

  file(STRINGS ${TURBOESM_PATH_vulkan_vulkan_core_h}/vulkan/vulkan_core.h version_line
       REGEX "^#define VK_HEADER_VERSION [0-9]+$")
  string(REGEX MATCH "[0-9]+$" vulkan_header_version "${version_line}")
  if(vulkan_header_version LESS oldest_vulkan_headers)
    message(FATAL_ERROR "the Vulkan headers in ${TURBOESM_PATH_vulkan_vulkan_core_h} are version "
                        "${vulkan_header_version}, ${oldest_vulkan_headers} or newer is needed: run scripts/setup.sh")
  endif()

  add_library(turboesm_vulkan_headers INTERFACE)
  target_include_directories(turboesm_vulkan_headers SYSTEM INTERFACE ${vulkan_include_dirs})
  target_compile_definitions(turboesm_vulkan_headers INTERFACE VK_NO_PROTOTYPES)
endif()
