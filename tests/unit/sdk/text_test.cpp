#include "marlin/sdk/text.h"

#include <gmock/gmock.h>

#include "marlin/sdk/error.h"
#include "marlin/sdk/metrics.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::HasSubstr;
using testing::ThrowsError;

TEST(NearestTest, FindsWhatWasMeantAndNothingThatWasNot) {
  const std::vector<std::string> names = {"epochs", "seed", "checkpointer.period", "train_batch_size"};
  EXPECT_EQ(nearest("epoch", names), "epochs");
  EXPECT_EQ(nearest("epcohs", names), "epochs") << "two neighbours swapped";
  EXPECT_EQ(nearest("period", names), "checkpointer.period") << "the group left out";
  EXPECT_EQ(nearest("zzzzzz", names), "");
}

TEST(JoinTest, PutsTheSeparatorBetweenAllParts) {
  EXPECT_EQ(join({"a", "b"}), "a, b");
  EXPECT_EQ(join({}), "");
  EXPECT_EQ(join({"", ""}, ";"), ";");
}

TEST(MetricsTest, KeepsOrderAndListsNamesWhenOneIsMissing) {
  Metrics metrics;
  metrics.set("val/b", 1);
  metrics.set("val/a", 2);
  metrics.set("val/b", 3);
  EXPECT_EQ(metrics.size(), 2U);
  EXPECT_EQ(metrics.begin()->first, "val/b");
  EXPECT_EQ(metrics.at("val/b"), 3);
  EXPECT_THAT([&] { (void)metrics.at("val/c"); }, ThrowsError(Errc::kNotFound, HasSubstr("val/b, val/a")));
}

}  // namespace
}  // namespace marlin
