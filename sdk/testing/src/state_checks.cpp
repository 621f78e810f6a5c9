// The checks that need no faults: what is saved, when, and what is loaded.
#include <ATen/ops/arange.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "checks.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "states.h"

namespace marlin::testing::detail {
namespace {

namespace fs = std::filesystem;

void expect_nothing_written(const fs::path& folder, const Files& before, const std::string& promise) {
  const Files after = files_below(folder);
  if (after == before) return;
  const auto changed = std::ranges::find_if(after, [&](const auto& file) { return !before.contains(file.first) || before.at(file.first) != file.second; });
  throw Broken(concat(promise, ", but ", changed == after.end() ? "a file is gone" : concat("'", changed->first, "' was written")));
}

// What a call that may fail threw, if it did; anything but an Error is a broken promise.
template <class Call>
std::optional<Error> thrown_by(const std::string& what, Call&& call) {
  try {
    call();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const Broken&) {
    throw;
  } catch (...) {
    throw Broken(concat(what, " threw something that is no marlin::Error"));
  }
}

// A format may lack a dtype, but must say so: what is dropped or changed in silence is missed only when a run resumes.
// The epochs' numbers have as many digits each: order by number is asked for elsewhere. @return "complex64", ...: what is refused.
std::vector<std::string> refused_dtypes(const Stage& stage, const fs::path& folder) {
  Subject subject(stage, folder);
  subject.open();
  int64_t epoch = 100;
  Checkpoint last = state_at(epoch);
  subject.save(last, subject.epoch_point(epoch++));
  std::vector<std::string> refused;
  for (const auto& [dtype, entry, tensor] : rare_tensors()) {
    Checkpoint state = state_at(epoch);
    state.module_interface_state.set(entry, tensor);
    const std::string doing = concat("save of a state with a tensor of ", dtype);
    const auto error = thrown_by(doing, [&] { subject.try_save(state, subject.epoch_point(epoch)); });
    if (error && std::string_view(error->what()).find(entry) == std::string_view::npos) {
      throw Broken(concat(doing, " keeps it or fails with an Error that names the entry '", entry, "', but it failed with: ", error->what()));
    }
    if (error) {
      refused.emplace_back(dtype);
    } else {
      last = state;
    }
    const std::string promise = error ? concat(doing, " failed (", error->what(), "), so that what was saved before stays") : concat(doing, " did not fail, so that load gives it");
    subject.expect(last, promise);
    Subject(stage, folder).expect(last, concat("for another checkpointer over the same files, too: ", promise));
    ++epoch;
  }
  return refused;
}

}  // namespace

std::string check_round_trip(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  subject.open();
  const Checkpoint varied = varied_state();
  subject.save(varied, subject.epoch_point(0));
  if (subject.expect(varied, "load gives what was saved").source.empty()) throw Broken("a checkpoint that was loaded says in `source` where from, but it is empty");
  Subject(stage, folder).expect(varied, "another checkpointer over the same files loads what was saved");

  Checkpoint live = state_at_step(15);
  subject.save(live, subject.step_point(15));
  go_on_training(live);
  subject.expect(state_at_step(15), "load gives the state (of a step) as it was when it was saved, though training has gone on in the same memory");

  Checkpoint loaded = subject.load();
  go_on_training(loaded);
  subject.expect(state_at_step(15), "what was loaded before and trained on does not change what is saved");
  subject.checkpointer().close();
  subject.checkpointer().close();
  Subject(stage, folder).expect(state_at_step(15), "what was saved is there after close()");
  const std::vector<std::string> refused = refused_dtypes(stage, stage.fresh("rare"));
  return refused.empty() ? "" : concat("refuses ", join(refused));
}

std::string check_models(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  subject.open();
  subject.save_epoch(0);
  const Checkpoint last = state_at(1);
  subject.save(last, subject.epoch_point(1));
  try {
    fs::current_path(folder);
    (void)subject.checkpointer().has_model(1);
    (void)subject.checkpointer().save_model(last.module_interface_state, 1);
    const bool again = subject.checkpointer().has_model(1);
    (void)subject.checkpointer().save_model(last.module_interface_state, 1);
    if (again && !subject.checkpointer().has_model(1)) throw Broken("has_model(1) is true after save_model(1), but false after the second one");
    (void)subject.checkpointer().save_model(StateDict{}, 2);
  } catch (const Error& error) {
    throw Broken(concat("save_model failed: ", error.what()));
  }
  subject.expect(last, "a model that was saved is no checkpoint: load gives the newest checkpoint as before");
  Subject(stage, folder).expect(last, "a model that was saved is no checkpoint: another checkpointer loads the newest checkpoint");
  return {};
}

std::string check_period_and_force(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  SaveSchedule schedule = subject.checkpointer().schedule();
  schedule.checkpoint = true;
  schedule.period = 3;
  subject.checkpointer().set_schedule(schedule);
  subject.open();
  const Files opened = files_below(folder);
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    SavePoint point = subject.epoch_point(epoch);
    point.cause = Cause::kPeriod;
    point.force = false;
    if (epoch % 3 != 0 && subject.checkpointer().due(point)) throw Broken(concat("epoch ", epoch, " is not due with period 3, but due() says so"));
    point.force = true;
    if (!subject.checkpointer().due(point)) throw Broken(concat("epoch ", epoch, " is forced, but due() says that it is not due"));
  }
  expect_nothing_written(folder, opened, "due() writes nothing");
  fs::current_path(folder);
  (void)subject.checkpointer().save(state_at(1), 1);
  expect_nothing_written(folder, opened, "save() of an epoch that is not due, without force, writes nothing");
  if (!subject.load().empty()) throw Broken("epoch 1 was not due and not forced, but load finds it");
  for (const int64_t epoch : {1, 2, 4}) {
    subject.save_epoch(epoch);
    subject.expect(state_at(epoch), concat("epoch ", epoch, " was not due, but forced"));
  }

  const fs::path off_folder = stage.fresh("off");
  Subject off(stage, off_folder);
  schedule.checkpoint = false;
  off.checkpointer().set_schedule(schedule);
  off.open();
  if (off.checkpointer().due(off.epoch_point(0))) throw Broken("the master switch is off, but due() says that a forced save is due");
  off.try_save(state_at(0), off.epoch_point(0));
  (void)off.checkpointer().save_model(state_at(0).module_interface_state, 0);
  off.checkpointer().close();
  expect_nothing_written(off_folder, {}, "with the master switch off nothing is written");
  return {};
}

std::string check_load_of_nothing(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  for (const char* when : {"an empty folder", "a run that has saved nothing"}) {
    const std::string what = concat("load in ", when);
    if (const auto error = thrown_by(what, [&] {
          if (!subject.try_load(newest()).empty()) throw Broken(concat(what, ": nothing was saved, but it found a checkpoint"));
        })) {
      throw Broken(concat(what, " that is not required gives an empty checkpoint, but it failed: ", error->what()));
    }
    LoadRequest required = newest();
    required.required = true;
    const auto error = thrown_by(what, [&] { (void)subject.try_load(required); });
    if (!error) throw Broken(concat(what, " that is required is an Error of code 'not found', but it returned"));
    if (error->code() != Errc::kNotFound) {
      throw Broken(concat(what, " that is required is an Error of code '", to_string(Errc::kNotFound), "', but its code is '", to_string(error->code()), "': ", error->what()));
    }
    subject.open();
  }
  for (const char* path : {"no_such_folder/checkpoint.pt", "no_such_file.pt"}) {
    const LoadRequest request{.from = LoadRequest::From::kPath, .path = (folder / path).string(), .required = true};
    if (!thrown_by("load of a path", [&] { (void)subject.try_load(request); })) throw Broken(concat("load of '", path, "', which is not there, is an Error, but it returned"));
  }
  subject.save_epoch(0);
  subject.expect(state_at(0), "a save after loads of nothing is kept");
  return {};
}

std::string check_newest_wins(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  subject.open();
  const auto expect = [&](const Checkpoint& state, const std::string& promise) {
    subject.expect(state, promise);
    Subject(stage, folder).expect(state, concat("for another checkpointer over the same files, too, ", promise));
  };
  // 9 and 10: as texts they stand the other way round.
  for (const int64_t epoch : {8, 9, 10}) subject.save_epoch(epoch);
  expect(state_at(10), "of epochs 8, 9 and 10 the newest is 10");
  subject.save(state_at_step(115), subject.step_point(115));
  expect(state_at_step(115), "of epoch 10 (global step 110) and step 115 the newest is step 115");
  subject.save_epoch(11);
  expect(state_at(11), "of step 115 and epoch 11 (global step 120) the newest is epoch 11");
  Checkpoint again = state_at(11);
  again.trainer_state.set("again", true);
  subject.save(again, subject.epoch_point(11));
  expect(again, "an epoch that is saved again replaces what was saved of it");
  return {};
}

std::string check_exceptions(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  Subject subject(stage, folder);
  subject.open();
  subject.save_epoch(0);
  Value deep = int64_t{1};
  for (int i = 0; i < 500; ++i) deep = List{{deep}};
  const at::Tensor line = at::arange(4, at::kFloat);
  const std::vector<std::pair<const char*, Value>> odd = {{"an undefined tensor", at::Tensor()},
                                                          {"a sparse tensor", line.to_sparse()},
                                                          {"a tensor without memory", line.to(at::kMeta)},
                                                          {"text that is not UTF-8", "\xff\xfe"},
                                                          {"lists in lists, 500 deep", deep}};
  int refused = 0;
  Checkpoint last = state_at(0);
  for (int64_t epoch = 1; const auto& [what, value] : odd) {
    Checkpoint state = state_at(epoch);
    state.trainer_state.set("odd", value);
    const std::string doing = concat("save of a state with ", what);
    const auto error = thrown_by(doing, [&] { subject.try_save(state, subject.epoch_point(epoch)); });
    refused += error.has_value();
    if (error) subject.expect(last, concat(doing, " failed (", error->what(), "), so that what was saved before stays"));
    last = state_at(epoch);
    subject.save(last, subject.epoch_point(epoch));
    subject.expect(last, concat("after the ", doing, " is kept"));
    ++epoch;
  }
  const fs::path other = stage.fresh("other") / "notes.txt";
  write(other, "no checkpoint, but notes\n");
  for (const fs::path& path : {other, other.parent_path() / "none" / "notes.txt"}) {
    const LoadRequest request{.from = LoadRequest::From::kPath, .path = path.string(), .required = true};
    const auto error = thrown_by("load of a path", [&] {
      if (!subject.try_load(request).empty()) throw Broken(concat("load of '", path.filename().string(), "', which is no checkpoint, gave one"));
    });
    if (!error) throw Broken(concat("load of '", path.filename().string(), "', which is named and no checkpoint, is an Error, but it gave an empty checkpoint"));
  }
  subject.expect(last, "failed loads change nothing");
  return concat(refused, " of ", odd.size(), " states that can hardly be saved were refused");
}

std::string check_two_in_one_process(const Stage& stage) {
  const fs::path folders[] = {stage.fresh("one"), stage.fresh("two")};
  Subject one(stage, folders[0]), two(stage, folders[1]);
  one.open();
  two.open();
  one.save_epoch(0);
  if (!two.load().empty()) throw Broken("two checkpointers of one process have folders of their own (HostContext::run_dir, the working folder), but the second finds what the first saved");
  two.save_epoch(3);
  one.expect(state_at(0), "of two checkpointers in one process the first finds what it saved");
  one.save_epoch(1);
  two.expect(state_at(3), "of two checkpointers in one process the second finds what it saved");
  one.checkpointer().close();
  two.save_epoch(4);
  one.expect(state_at(1), "of two checkpointers in one process the first finds its newest, though the second has saved since");
  two.expect(state_at(4), "of two checkpointers in one process the second goes on, though the first was closed");
  return {};
}

std::string check_new_process(const Stage& stage) {
  const fs::path folder = stage.fresh("run");
  in_new_process("the first process", [&] {
    Subject subject(stage, folder);
    subject.open();
    subject.save_epoch(0);
    subject.save_epoch(1);
    subject.checkpointer().close();
  });
  in_new_process("a second process", [&] {
    Subject subject(stage, folder);
    const Checkpoint found = subject.expect(state_at(1), "what an earlier process saved is found");
    if (std::error_code error; fs::exists(found.source, error)) {
      const Checkpoint named = subject.try_load({.from = LoadRequest::From::kPath, .path = found.source, .required = true});
      if (const std::string differs = difference(state_at(1), named); !differs.empty()) throw Broken(concat("load of the path that `source` gave is the same state, but ", differs));
    }
    subject.open({.loaded_from = found.source, .run_id = "contract"});
    subject.save_epoch(2);
    subject.expect(state_at(2), "a run that goes on saves");
  });
  in_new_process("a third process", [&] { Subject(stage, folder).expect(state_at(2), "what the process that went on saved is found"); });
  return {};
}

}  // namespace marlin::testing::detail
