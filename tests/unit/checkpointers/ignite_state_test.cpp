// Ignite's behaviour, row by row: what is in a file, the checkpointer's own state, events, what is refused. The number at a test's end
// is the row of the case table; a comment says where this project differs.
#include <gtest/gtest.h>

#include <stdexcept>

#include "ignite_support.h"

namespace marlin {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Optional;
using ::testing::SizeIs;
using testing::by_score;
using testing::entry;
using testing::IgniteCases;
using testing::keys_of;
using testing::listed;
using testing::Listed;
using testing::model_state;
using testing::one;
using testing::optimizer_state;
using testing::point;
using testing::ThrowsError;
using testing::two;

// ---- what is in a file

TEST_F(IgniteCases, StatesKeepTheirShapeRow105) {
  const StateDict listed_models{{"model", List{{Value(model_state(1.0)), Value(model_state(2.0))}}}};
  const StateDict nested{{"model", StateDict{{"a", StateDict{{"b", model_state(3.0)}}}}}};
  const auto checkpointer = in_memory({.n_saved = std::nullopt});
  checkpointer->save_objects(one(), point(1, 1));
  checkpointer->save_objects(listed_models, point(1, 2));
  checkpointer->save_objects(nested, point(1, 3));
  EXPECT_TRUE(equal(kept("model_1.pt").root, one()));
  EXPECT_TRUE(equal(kept("model_2.pt").root, listed_models));
  EXPECT_TRUE(equal(kept("model_3.pt").root, nested));
}

TEST_F(IgniteCases, TheStateIsBorrowedForTheCallRow168) {
  class Borrowing final : public Storage {
   public:
    std::string put(const std::string& name, const StateDict& root, const CommitRecord&) override {
      seen = root.at("model").as_dict().at("weight").as_tensor();
      return name;
    }
    [[nodiscard]] Archive get(const std::string& name, Verify) const override { throw Error(Errc::kNotFound, name); }
    [[nodiscard]] std::vector<std::string> list() const override { return {}; }
    bool remove(const std::string&) override { return false; }
    at::Tensor seen;
  };
  const auto borrowing = std::make_shared<Borrowing>();
  const StateDict live = one();
  BestKCheckpointer({}, {.storage = borrowing}).save_objects(live, point(1, 1));
  EXPECT_EQ(borrowing->seen.data_ptr(), live.at("model").as_dict().at("weight").as_tensor().data_ptr()) << "not copied: a storage that keeps it clones it";
}

// ---- include_self

// Differs: the model's state stands under its name, so that it is not mixed with the list.
TEST_F(IgniteCases, TheListIsInEveryFileOurLayoutRow94) {
  const auto checkpointer = in_memory({.include_self = true});
  checkpointer->save_objects(one(), point(0, 0));
  const StateDict& root = kept("model_0.pt").root;
  EXPECT_THAT(keys_of(root), ElementsAre("model", "checkpointer"));
  EXPECT_TRUE(equal(root.at("model"), model_state()));
  EXPECT_EQ(listed(root.at("checkpointer").as_dict()), (Listed{{0.0, "model_0.pt"}})) << "the new entry is in it";
  EXPECT_TRUE(equal(root.at("checkpointer").as_dict(), checkpointer->state()));
}

TEST_F(IgniteCases, AnotherCheckpointerGoesOnFromTheListInAFileRows95And96) {
  in_memory({.include_self = true})->save_objects(one(), point(0, 0));
  const auto second = in_memory({.include_self = true});
  second->load_state(kept("model_0.pt").root.at("checkpointer").as_dict());
  EXPECT_EQ(second->last_checkpoint(), "model_0.pt");
  second->save_objects(one(), point(12, 1234));
  EXPECT_THAT(storage->calls, ElementsAre("put model_0.pt", "put model_1234.pt", "remove model_0.pt"));
  EXPECT_EQ(listed(kept("model_1234.pt").root.at("checkpointer").as_dict()), (Listed{{1234.0, "model_1234.pt"}})) << "what leaves for it is out of it";
}

TEST_F(IgniteCases, TheListStandsBesideSeveralObjectsRow97) {
  const auto checkpointer = in_memory({.include_self = true});
  checkpointer->save_objects(two(), point(0, 0));
  EXPECT_THAT(keys_of(kept("checkpoint_0.pt").root), ElementsAre("model", "optimizer", "checkpointer"));
  EXPECT_EQ(listed(kept("checkpoint_0.pt").root.at("checkpointer").as_dict()), (Listed{{0.0, "checkpoint_0.pt"}}));
  checkpointer->save_objects(two(), point(12, 1234));
  EXPECT_EQ(listed(kept("checkpoint_1234.pt").root.at("checkpointer").as_dict()), (Listed{{1234.0, "checkpoint_1234.pt"}}));
  EXPECT_EQ(checkpointer->last_checkpoint(), "checkpoint_1234.pt");
}

// In Ignite nothing but {"checkpointer"} can be loaded from such a file.
TEST_F(IgniteCases, AnOnlyObjectLoadsFromAFileWithTheListDiffersFromRow138) {
  on_disk({.include_self = true})->save_objects(one(3.0), point(1, 1));
  const StateDict model = model_state(0.0);
  const auto second = on_disk({.include_self = true});
  load_objects({{"model", tensors_target(model)}, {"checkpointer", state_target([&](const StateDict& state) { second->load_state(state); })}}, folder / "model_1.pt");
  EXPECT_TRUE(equal(model, model_state(3.0)));
  EXPECT_EQ(second->last_checkpoint(), file("model_1.pt"));
}

// Ignite fails while saving.
TEST_F(IgniteCases, AnOnlyListIsSavedWithTheCheckpointersListDiffersFromRow139) {
  in_memory({.include_self = true})->save_objects({{"models", List{{Value(model_state())}}}}, point(1, 1));
  EXPECT_THAT(keys_of(kept("models_1.pt").root), ElementsAre("models", "checkpointer"));
}

// Ignite's ModelCheckpoint writes its own over it.
TEST_F(IgniteCases, AnObjectOfTheReservedNameIsRefusedRows6And140) {
  EXPECT_THAT([&] { (void)in_memory({.objects = {"module_interface_state", "checkpointer"}, .include_self = true}); },
              ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer")));
  const auto checkpointer = in_memory({.include_self = true});
  EXPECT_THAT([&] { checkpointer->save_objects({{"model", model_state()}, {"checkpointer", StateDict{}}}, point(1, 1)); },
              ThrowsError(Errc::kInvalidArgument, HasSubstr("checkpointer")));
  EXPECT_THAT(storage->calls, IsEmpty());
  EXPECT_THAT(in_memory()->save_objects({{"checkpointer", StateDict{}}}, point(1, 1)), ElementsAre("checkpointer_1.pt")) << "a name like any other without include_self";
}

// ---- state() and load_state()

TEST_F(IgniteCases, TheStateIsTheListRow98) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt});
  for (const int64_t i : {0, 10, 20}) checkpointer->save_objects(one(), point(1, i));
  const StateDict state = checkpointer->state();
  EXPECT_THAT(keys_of(state), ElementsAre("_saved", "last"));
  EXPECT_NE(state.at("_saved").get_if<List>(), nullptr);
  EXPECT_NE(state.at("_saved").as_items().at(0).get_if<Tuple>(), nullptr);
  EXPECT_EQ(listed(state), (Listed{{0.0, "model_0.pt"}, {10.0, "model_10.pt"}, {20.0, "model_20.pt"}}));
  EXPECT_EQ(state.at("last").as_string(), "model_20.pt");
}

TEST_F(IgniteCases, AStateIsTakenRow99) {
  const auto checkpointer = in_memory({.n_saved = std::nullopt});
  for (const int64_t i : {0, 10, 20}) checkpointer->save_objects(one(), point(1, i));
  const auto second = in_memory({.n_saved = std::nullopt});
  second->load_state(checkpointer->state());
  EXPECT_TRUE(equal(second->state(), checkpointer->state()));
  EXPECT_EQ(second->last_checkpoint(), "model_20.pt");
  EXPECT_THAT(logger.warnings(), IsEmpty());
}

TEST_F(IgniteCases, IgnitesOwnStateIsTakenRow95) {
  in_memory()->save_objects(one(), point(1, 10));
  const auto checkpointer = in_memory();
  checkpointer->load_state({{"_saved", List{{Tuple{{Value(10), Value("model_10.pt")}}}}}});
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{10.0, "model_10.pt"}}));
  EXPECT_EQ(checkpointer->best_checkpoint(), "model_10.pt");
}

TEST_F(IgniteCases, AListThatIsTooLongIsTrimmedByTheNextSaveRow155) {
  const auto all = in_memory({.n_saved = std::nullopt});
  for (const int64_t i : {0, 10, 20}) all->save_objects(one(), point(1, i));
  const auto checkpointer = in_memory({.n_saved = 2});
  checkpointer->load_state(all->state());
  EXPECT_THAT(listed(checkpointer->state()), SizeIs(3));
  EXPECT_THAT(storage->calls, SizeIs(3)) << "nothing is removed before the next is safe";
  checkpointer->save_objects(one(), point(1, 30));
  storage->calls.erase(storage->calls.begin(), storage->calls.begin() + 3);
  EXPECT_THAT(storage->calls, ElementsAre("put model_30.pt", "remove model_0.pt", "remove model_10.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{20.0, "model_20.pt"}, {30.0, "model_30.pt"}}));
}

// Ignite's next save fails, and saves nothing.
TEST_F(IgniteCases, NamesThatAreGoneAreLeftOutDiffersFromRow156) {
  in_memory()->save_objects(one(), point(1, 10));
  const auto checkpointer = in_memory({.n_saved = 2});
  checkpointer->load_state({{"_saved", List{{entry(5.0, "model_5.pt"), entry(10.0, "model_10.pt")}}}, {"last", "model_5.pt"}});
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("model_5.pt")));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{10.0, "model_10.pt"}}));
}

TEST_F(IgniteCases, AWrongStateIsRefusedRow181) {
  const auto checkpointer = in_memory();
  checkpointer->save_objects(one(), point(1, 10));
  const auto refused = [&](const StateDict& state) {
    EXPECT_THAT([&] { checkpointer->load_state(state); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("_saved")));
    EXPECT_EQ(listed(checkpointer->state()), (Listed{{10.0, "model_10.pt"}}));
  };
  refused({});
  refused({{"_saved", 3}});
  refused({{"_saved", StateDict{}}});
  refused({{"_saved", List{{Tuple{{Value(1.0), Value("model_1.pt"), Value("")}}}}}});
  refused({{"_saved", List{{Tuple{{Value("model_1.pt"), Value(1.0)}}}}}});
  refused({{"_saved", List{{Value(1.0)}}}});
}

// ---- what is refused

TEST_F(IgniteCases, NothingToSaveIsRefusedRows15And179) {
  EXPECT_THAT([&] { (void)in_memory({.objects = {}}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("objects")));
  EXPECT_THAT([&] { in_memory()->save_objects({}, point(1, 3)); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("objects")));
  EXPECT_THAT(storage->calls, IsEmpty());
}

TEST_F(IgniteCases, AStateThatCannotBeWrittenIsNamedAndTheNextIsSavedRows3And18) {
  const auto checkpointer = on_disk();
  EXPECT_THAT([&] { checkpointer->save_objects({{"name", StateDict{{"weight", at::Tensor()}}}}, point(1, 1)); },
              ThrowsError(Errc::kUnsupported, HasSubstr("name.weight")));
  EXPECT_THAT(files(), IsEmpty());
  EXPECT_THAT(checkpointer->save_objects({{"name", model_state()}}, point(1, 2)), ElementsAre(file("name_2.pt")));
}

TEST_F(IgniteCases, OptionsOfIgnite04AreAcceptedOrExplainedRow189) {
  (void)in_memory({.save_interval = 1});
  (void)in_memory({.archived = false});
  (void)in_memory({.save_as_state_dict = true});
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("save_interval"), HasSubstr("archived"), HasSubstr("save_as_state_dict")));
  EXPECT_THAT([&] { (void)in_memory({.save_interval = 2}); }, ThrowsError(Errc::kInvalidArgument, AllOf(HasSubstr("save_interval"), HasSubstr("period"))));
  EXPECT_THAT([&] { (void)in_memory({.save_as_state_dict = false}); }, ThrowsError(Errc::kInvalidArgument, HasSubstr("save_as_state_dict")));
  (void)in_memory();
  EXPECT_THAT(logger.warnings(), SizeIs(3));
}

// ---- events

// Ignite knows the event only after the first call.
TEST_F(IgniteCases, ListenersComeAtAnyTimeDiffersFromRow131) {
  const auto checkpointer = in_memory({.score_name = "acc"}, {.score_function = by_score});
  std::vector<std::string> first, second;
  checkpointer->on_saved([&](const SavedCheckpoint& saved) {
    EXPECT_TRUE(storage->kept.contains(saved.name)) << "it is committed";
    EXPECT_EQ(saved.where, saved.name);
    EXPECT_THAT(saved.score, Optional(saved.point.metrics.at("score")));
    first.push_back(saved.name);
  });
  checkpointer->save_objects(one(), point(1, 1, 0.5));
  checkpointer->on_saved([&](const SavedCheckpoint& saved) { second.push_back(saved.name); });
  checkpointer->save_objects(one(), point(2, 2, 0.4));
  EXPECT_THAT(first, SizeIs(1)) << "nothing was saved";
  checkpointer->save_objects(one(), point(3, 3, 0.6));
  EXPECT_THAT(first, ElementsAre("model_acc=0.5000.pt", "model_acc=0.6000.pt"));
  EXPECT_THAT(second, ElementsAre("model_acc=0.6000.pt"));
}

TEST_F(IgniteCases, AListenerHasNoScoreWhereNoneDecides) {
  const auto checkpointer = in_memory();
  std::optional<double> score = 1.0;
  checkpointer->on_saved([&](const SavedCheckpoint& saved) { score = saved.score; });
  checkpointer->save_objects(one(), point(1, 1));
  EXPECT_EQ(score, std::nullopt);
}

TEST_F(IgniteCases, AListenerThatThrowsIsAWarningAndTheOthersAreCalled) {
  const auto checkpointer = in_memory();
  int called = 0;
  checkpointer->on_saved([](const SavedCheckpoint&) { throw std::runtime_error("no disk for copies"); });
  checkpointer->on_saved([&](const SavedCheckpoint&) { ++called; });
  EXPECT_THAT(checkpointer->save_objects(one(), point(1, 1)), ElementsAre("model_1.pt"));
  EXPECT_EQ(called, 1);
  EXPECT_THAT(logger.warnings(), ElementsAre(HasSubstr("no disk for copies")));
  EXPECT_EQ(checkpointer->last_checkpoint(), "model_1.pt");
}

// ---- saves of a run

Checkpoint run_state(int64_t step) {
  return {{{"weight", torch::full({2}, static_cast<double>(step))}}, {{"last_epoch", 0}}, {{"global_step_completed", step}, {"batches_completed", step}}, {}};
}
SavePoint run_point(int64_t epoch, int64_t step, double score = 0.0) {
  SavePoint at = point(epoch, step, score, "acc");
  at.run_id = "this run";
  return at;
}

TEST_F(IgniteCases, ARunsStateIsKeptByItsPartsAndSaysItsScoreRow100) {
  in_memory({.score_name = "acc"})->save(run_state(10), run_point(1, 10, 0.5));
  const auto& [root, record] = kept("checkpoint_acc=0.5000.pt");
  EXPECT_THAT(keys_of(root), ElementsAre("module_interface_state", "trainer_state", "trainer_backend_state"));
  EXPECT_EQ(record.kind, "full");
  EXPECT_EQ(record.run_id, "this run");
  EXPECT_EQ(record.epoch, 0);
  EXPECT_EQ(record.global_step, 10);
  EXPECT_THAT(record.score, Optional(0.5));
  EXPECT_EQ(record.metrics.at("acc"), 0.5);
}

TEST_F(IgniteCases, SomePartsOfARunsStateAreKept) {
  in_memory({.objects = {"module_interface_state"}})->save(run_state(10), run_point(1, 10));
  EXPECT_THAT(keys_of(kept("module_interface_state_10.pt").root), ElementsAre("module_interface_state"));
}

TEST_F(IgniteCases, AnExceptionsStateIsSavedAndNothingGoesRow150) {
  const auto checkpointer = in_memory();
  checkpointer->save(run_state(10), run_point(1, 10));
  SavePoint broken = run_point(2, 15);
  broken.cause = Cause::kException;
  broken.force = true;
  EXPECT_THAT(checkpointer->save(run_state(15), broken), ElementsAre("checkpoint_15.pt"));
  EXPECT_THAT(storage->calls, ElementsAre("put checkpoint_10.pt", "put checkpoint_15.pt"));
  EXPECT_EQ(kept("checkpoint_15.pt").record.cause, "exception");
}

TEST_F(IgniteCases, TheNewestStaysBesideTheBest) {
  const auto checkpointer = in_memory({.filename_prefix = "best", .score_name = "acc"});
  checkpointer->open({});
  checkpointer->save(run_state(10), run_point(1, 10, 0.5));
  checkpointer->save(run_state(20), run_point(2, 20, 0.4));
  checkpointer->save(run_state(30), run_point(3, 30, 0.3));
  EXPECT_THAT(storage->calls, ElementsAre("put best_checkpoint_acc=0.5000.pt", "put best_checkpoint_latest_20.pt", "put best_checkpoint_latest_30.pt",
                                          "remove best_checkpoint_latest_20.pt"));
  EXPECT_EQ(listed(checkpointer->state()), (Listed{{0.5, "best_checkpoint_acc=0.5000.pt"}}));
}

TEST_F(IgniteCases, TheNewestIsNotKeptWhereAnotherDoesOrItIsNotAskedFor) {
  const auto beside = in_memory({.score_name = "acc"});
  RunStart start;
  start.alone = false;
  beside->open(start);
  const auto asked_not_to = in_memory({.filename_prefix = "no", .score_name = "acc", .keep_latest = KeepLatest::kNo});
  asked_not_to->open({});
  for (const auto& checkpointer : {beside.get(), asked_not_to.get()}) {
    checkpointer->save(run_state(10), run_point(1, 10, 0.5));
    EXPECT_THAT(checkpointer->save(run_state(20), run_point(2, 20, 0.4)), IsEmpty());
  }
  EXPECT_THAT(storage->list(), ElementsAre("checkpoint_acc=0.5000.pt", "no_checkpoint_acc=0.5000.pt"));
}

TEST_F(IgniteCases, ObjectsHaveNoLatestFileUnlessAskedForRow184) {
  const auto checkpointer = in_memory({.score_name = "acc"});
  checkpointer->save_objects(one(), point(1, 10, 0.5, "acc"));
  EXPECT_THAT(checkpointer->save_objects(one(), point(2, 20, 0.4, "acc")), IsEmpty());
  const auto latest = in_memory({.filename_prefix = "p", .score_name = "acc", .keep_latest = KeepLatest::kYes});
  latest->save_objects(one(), point(1, 10, 0.5, "acc"));
  EXPECT_THAT(latest->save_objects(one(), point(2, 20, 0.4, "acc")), ElementsAre("p_model_latest_20.pt"));
  EXPECT_THAT(storage->list(), ElementsAre("model_acc=0.5000.pt", "p_model_acc=0.5000.pt", "p_model_latest_20.pt"));
}

}  // namespace
}  // namespace marlin
