// Making the ops of slices, and what a profile of them adds up to.
#include "model/sliced_ops.h"

#include <algorithm>

namespace soma {

void SlicedOps::make(int64_t slices) {
  while (static_cast<int64_t>(slices_.size()) < slices) {
    slices_.push_back(make_cpu_ops(precision_));
    if (!profiled_.empty()) profiled_.push_back(std::make_unique<ProfiledOps>(*slices_.back()));
  }
}

void SlicedOps::profile(bool on) {
  profiled_.clear();
  if (!on) return;
  profiled_.push_back(std::make_unique<ProfiledOps>(*whole_));
  for (const auto& ops : slices_) profiled_.push_back(std::make_unique<ProfiledOps>(*ops));
}

std::vector<OpRecord> SlicedOps::take_profile() {
  if (profiled_.empty()) return {};
  std::vector<OpRecord> records = profiled_[0]->take();
  std::vector<OpRecord> sliced;
  int64_t busy = 0;
  for (std::size_t i = 1; i < profiled_.size(); ++i) {
    const std::vector<OpRecord> taken = profiled_[i]->take();
    if (!taken.empty()) ++busy;
    for (const OpRecord& r : taken) add_record(&sliced, r);
  }
  for (OpRecord& r : sliced) {
    r.seconds /= static_cast<double>(busy);
    add_record(&records, r);
  }
  return records;
}

}  // namespace soma
