#pragma once

#include "runtime/backend.h"

namespace turboesm {

const Backend& cpu_backend();

}  // namespace turboesm
