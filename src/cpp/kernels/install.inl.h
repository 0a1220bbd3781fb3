// Fills every slot of the table with this level's kernels.
void install(Table* table) {
  table->gemm_f32 = table->gemm_bf16 = {kGemmRows, kGemmCols, 1, 384, 0, 0, nullptr};
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  table->gemm_bf16.instruction = 1;
#endif
#define SOMA_SLOT(result, name, arguments) table->name = name;
  SOMA_KERNELS(SOMA_SLOT)
#undef SOMA_SLOT
}
