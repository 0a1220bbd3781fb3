// Fills every slot of the table with this level's kernels.
void install(Table* table) {
  table->gemm_rows = kGemmRows;
  table->gemm_cols = kGemmCols;
#define SOMA_SLOT(result, name, arguments) table->name = name;
  SOMA_KERNELS(SOMA_SLOT)
#undef SOMA_SLOT
}
