#include "distributed/agreement.h"

#include <gmock/gmock.h>

#include "distributed/value_bytes.h"
#include "on_ranks.h"
#include "throws_error.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using testing::on_ranks;
using testing::ThrowsError;

Agreement::Place place(uint32_t mark, const std::string& name) {
  return {mark, [name] { return name; }};
}

TEST(AgreementTest, WhatOneRankWishesAllHearAndNumbersAreSummed) {
  on_ranks(3, [](Communicator& ranks) {
    Agreement agreement(ranks);
    for (int round = 0; round < 20; ++round) {
      Wishes mine;
      if (ranks.rank() == 1 && round % 2 == 0) mine = {.stop = true, .signal = 15};
      if (ranks.rank() == 2) mine.save = mine.ask = round % 3 == 0;
      if (ranks.rank() == 0) mine.out_of_time = round % 5 == 0;
      agreement.send(place(static_cast<uint32_t>(round), "here"), mine, {1.0, 0.25 * ranks.rank()});
      std::vector<double> sums;
      const Wishes all = agreement.receive(sums);
      EXPECT_EQ(all.stop, round % 2 == 0);
      EXPECT_EQ(all.signal, round % 2 == 0 ? 15 : 0);
      EXPECT_EQ(all.save, round % 3 == 0);
      EXPECT_EQ(all.ask, round % 3 == 0);
      EXPECT_EQ(all.out_of_time, round % 5 == 0);
      EXPECT_THAT(sums, ElementsAre(3.0, 0.75));
    }
  });
}

TEST(AgreementTest, OfTwoSignalsTheHigherNumberCounts) {
  on_ranks(2, [](Communicator& ranks) {
    Agreement agreement(ranks);
    agreement.send(place(0, "here"), {.stop = true, .signal = ranks.rank() == 0 ? 15 : 2}, {});
    std::vector<double> none;
    EXPECT_EQ(agreement.receive(none).signal, 15);
    EXPECT_THAT(none, SizeIs(0));
  });
}

TEST(AgreementTest, AnyCountOfNumbersIsSummed) {
  on_ranks(2, [](Communicator& ranks) {
    Agreement agreement(ranks);
    for (const size_t count : {63, 64, 65, 1000}) {
      agreement.send(place(7, "here"), {}, std::vector<double>(count, ranks.rank() + 1.0));
      std::vector<double> sums;
      static_cast<void>(agreement.receive(sums));
      EXPECT_EQ(sums, std::vector<double>(count, 3.0));
    }
  });
}

TEST(AgreementTest, RanksAtDifferentPlacesAreToldWhoIsWhereWhateverTheyBring) {
  on_ranks(3, [](Communicator& ranks) {
    Agreement agreement(ranks);
    const bool strays = ranks.rank() == 2;
    agreement.send(place(strays ? 5 : 4, strays ? "the end of its batches" : "step 4"), {}, std::vector<double>(strays ? 1 : 100, 1.0));
    std::vector<double> sums;
    EXPECT_THAT([&] { static_cast<void>(agreement.receive(sums)); },
                ThrowsError(Errc::kTraining, AllOf(HasSubstr("rank 0 is at step 4"), HasSubstr("rank 2 at the end of its batches"))));
  });
}

TEST(ValueBytesTest, StatesComeOutAsTheyWentIn) {
  const at::Tensor strided = at::arange(12, at::kLong).view({3, 4}).t();
  StateDict inner = {{"null", nullptr}, {"yes", true}, {"int", -5}, {"float", 0.1}, {"text", std::string("a\0b", 3)}};
  inner.set(int64_t{7}, List{{1, Tuple{{2.5, "x"}}}});
  inner.set("tensors", List{{strided, at::Tensor(), at::empty({0, 3}), at::scalar_tensor(2.0, at::kBFloat16), at::ones({2}, at::kBool), at::ones({2}, at::kComplexFloat)}});
  inner.ordered_dict = true;
  inner.attributes = std::make_shared<const StateDict>(StateDict{{"_metadata", 1}});
  const Value back = value_of_bytes(to_bytes(Value(inner)));
  EXPECT_TRUE(equal(back.as_dict(), inner));
  EXPECT_TRUE(back.as_dict().ordered_dict);
  ASSERT_NE(back.as_dict().attributes, nullptr);
  EXPECT_EQ(back.as_dict().attributes->at("_metadata").as_int(), 1);

  const Checkpoint checkpoint{{{"w", strided}}, inner, {{"global_step_completed", 3}}, "a/b.pt"};
  const Checkpoint copy = checkpoint_of_bytes(to_bytes(checkpoint));
  EXPECT_TRUE(equal(copy.module_interface_state, checkpoint.module_interface_state));
  EXPECT_TRUE(equal(copy.trainer_state, checkpoint.trainer_state));
  EXPECT_EQ(copy.global_step(), 3);
  EXPECT_EQ(copy.source, "a/b.pt");
}

TEST(ValueBytesTest, BytesThatAreCutAreCorruptAtEveryLength) {
  const std::string bytes = to_bytes(Value(StateDict{{"a", List{{1, "text", at::ones({3})}}}}));
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT([&] { static_cast<void>(value_of_bytes(bytes.substr(0, size))); }, ThrowsError(Errc::kCorrupt, HasSubstr("another rank"))) << size;
  }
  EXPECT_THAT([&] { static_cast<void>(value_of_bytes(bytes + "x")); }, ThrowsError(Errc::kCorrupt, HasSubstr("another rank")));
}

}  // namespace
}  // namespace marlin
