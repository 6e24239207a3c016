// The table of one instruction set's kernels.
#include "runtime/cpu/variant.h"

#define TURBOESM_CONCATENATE_(a, b) a##b
#define TURBOESM_CONCATENATE(a, b) TURBOESM_CONCATENATE_(a, b)
#define TURBOESM_TEXT_(a) #a
#define TURBOESM_TEXT(a) TURBOESM_TEXT_(a)

namespace turboesm::cpu {

using namespace TURBOESM_CPU_VARIANT;

extern const Kernels TURBOESM_CONCATENATE(kernels_, TURBOESM_CPU_VARIANT);
const Kernels TURBOESM_CONCATENATE(kernels_, TURBOESM_CPU_VARIANT) = {
    TURBOESM_TEXT(TURBOESM_CPU_VARIANT),
    token_dropout,
    embed,
    layer_norm,
    linear,
    qkv_rope,
    attention,
    pool_mean,
    attention_maps,
    contact_sums,
    contact_accumulate,
    fill,
    random_normal,
    copy,
    kv_append,
    kv_query,
    kv_attention,
    sample,
};

}  // namespace turboesm::cpu
