// The peak of arithmetic of a level: as many independent chains of multiply-adds as its register tile has, without a
// load. Memory cannot lower this figure, as it lowers that of a product.

template <int kOperations, typename MultiplyAdd>
int64_t peak(float* values, int64_t rounds, MultiplyAdd multiply_add) {
  Vec sum[kGemmRows][kGemmVectors];
  SOMA_UNROLL for (int i = 0; i < kGemmRows; ++i) {
    SOMA_UNROLL for (int j = 0; j < kGemmVectors; ++j) {
      sum[i][j] =
          set1(values[2] + static_cast<float>(i * kGemmVectors + j));  // different, or the compiler merges the chains
    }
  }
  const Vec a = in_register(set1(values[0])), b = in_register(set1(values[1]));
  for (int64_t r = 0; r < rounds; ++r) {
    SOMA_UNROLL for (int i = 0; i < kGemmRows; ++i) {
      SOMA_UNROLL for (int j = 0; j < kGemmVectors; ++j) sum[i][j] = multiply_add(a, b, sum[i][j]);
    }
  }
  Vec total = set1(0.0f);
  SOMA_UNROLL for (int i = 0; i < kGemmRows; ++i) {
    SOMA_UNROLL for (int j = 0; j < kGemmVectors; ++j) total = add(total, sum[i][j]);
  }
  values[2] = reduce_add(total);
  return rounds * kGemmRows * kGemmVectors * kWidth * kOperations;
}

int64_t peak_fma(float* values, int64_t rounds) {
  return peak<2>(values, rounds, [](Vec a, Vec b, Vec c) { return fma(a, b, c); });
}
int64_t peak_bf16(float* values, int64_t rounds) {
#ifdef SOMA_SQUARES
  return peak<8>(values, rounds, [](Vec a, Vec b, Vec c) { return dot_squares(a, b, c); });
#else
  return peak<4>(values, rounds, [](Vec a, Vec b, Vec c) { return dot_pairs(a, b, c); });
#endif
}
