// The kernels for AVX-512; see kernels_portable.cpp.
#include <math.h>

#include "kernels.h"
#include "simd_avx512.h"

#include "matvec.inl"

#include "attention.inl"

#include "importance.inl"

#include "rows.inl"

namespace sparsight {

const Kernels kernels_avx512 = {
    SPARSIGHT_LEVEL_NAME, matvec,      quantise,     rms_norm, layer_norm, gate, attend,
    score_keys,           score_pages, sum_softmax2, between,  count_above, collect,    arrange, restore, dot_rows, add_rows, read_memory,
};

}  // namespace sparsight
