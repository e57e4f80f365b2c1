// The kernels for one level of instruction sets. No template or inline function of the standard library is used in these files: the
// linker keeps one copy of such a function, and it might be this one.
#include <math.h>

#include "kernels.h"
#include "simd_portable.h"

#include "matvec.inl"

#include "attention.inl"

#include "importance.inl"

#include "rows.inl"

namespace sparsight {

const Kernels kernels_portable = {
    SPARSIGHT_LEVEL_NAME, matvec,      quantise,     rms_norm, layer_norm, gate, attend,
    score_keys,           score_pages, sum_softmax2, between,  count_above, collect,    arrange, restore, dot_rows, add_rows, read_memory,
};

}  // namespace sparsight
