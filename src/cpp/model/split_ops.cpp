// Makes the ops of the splits, and adds up their profiles.
#include "model/split_ops.h"

#include <algorithm>

namespace soma {

void SplitOps::make(int64_t splits) {
  while (static_cast<int64_t>(splits_.size()) < splits) {
    splits_.push_back(device_.make_ops(precision_));
    if (!profiled_.empty()) profiled_.push_back(std::make_unique<ProfiledOps>(device_, *splits_.back()));
  }
}

void SplitOps::profile(bool on) {
  profiled_.clear();
  if (!on) return;
  profiled_.push_back(std::make_unique<ProfiledOps>(device_, *whole_));
  for (const auto& ops : splits_) profiled_.push_back(std::make_unique<ProfiledOps>(device_, *ops));
}

std::vector<OpRecord> SplitOps::take_profile() {
  if (profiled_.empty()) return {};
  std::vector<OpRecord> records = profiled_[0]->take();
  std::vector<OpRecord> split;
  int64_t busy = 0;
  for (std::size_t i = 1; i < profiled_.size(); ++i) {
    const std::vector<OpRecord> taken = profiled_[i]->take();
    if (!taken.empty()) ++busy;
    for (const OpRecord& r : taken) add_record(&split, r);
  }
  for (OpRecord& r : split) {
    r.seconds /= static_cast<double>(busy);
    add_record(&records, r);
  }
  return records;
}

}  // namespace soma
