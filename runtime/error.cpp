#include "runtime/error.h"

namespace turboesm {

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage: return 2;
    case ErrorKind::input: return 3;
    case ErrorKind::device:
    case ErrorKind::out_of_memory: return 4;
    case ErrorKind::cancelled: return 130;
  }
  return 1;
}

}  // namespace turboesm
