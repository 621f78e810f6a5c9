// What plugins do wrong after they were loaded: the caller gets an Error that names plugin, file and call, or a line in the log.
#include <gmock/gmock.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "marlin/core/plugin_host.h"
#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "recording_logger.h"
#include "temp_folder.h"

namespace marlin {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

const std::string kPlugins = MARLIN_BINARY_DIR "/bad_plugins";
const std::string kOwnType = " failed with an exception of type mine::Oops, which is no std::exception";

std::string titled(const std::string& name) { return "plugin '" + name + "' (" + kPlugins + "/lib" + name + ".so): "; }

std::string text_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::kPlugin);
    return error.what();
  }
  return "nothing was thrown";
}

Options with(const LoadedPlugin& plugin, const std::string& name, const std::string& value) {
  Options options(plugin.options);
  options.set(name, value);
  return options;
}

TEST(PluginCallsTest, ATypeOfACheckpointersOwnBecomesAnErrorInEachCall) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("throws_in_calls", PluginKind::kCheckpointer);
  const std::pair<std::string, std::function<void(AbstractCheckpointer&)>> calls[] = {
      {"open", [](AbstractCheckpointer& it) { it.open({}); }},
      {"is_due", [](AbstractCheckpointer& it) { (void)it.due({}); }},
      {"save", [](AbstractCheckpointer& it) { it.save({}, SavePoint{}); }},
      {"save_model", [](AbstractCheckpointer& it) { it.save_model({}, 0); }},
      {"has_model", [](AbstractCheckpointer& it) { (void)it.has_model(0); }},
      {"wants_load", [](AbstractCheckpointer& it) { (void)it.wants_load(); }},
      {"load", [](AbstractCheckpointer& it) { (void)it.load(); }},
      {"close", [](AbstractCheckpointer& it) { it.close(); }}};
  for (const auto& [name, call] : calls) {
    const auto checkpointer = host.make_checkpointer(plugin, with(plugin, "call", name));
    EXPECT_EQ(text_of([&, &run = call] { run(*checkpointer); }), titled("throws_in_calls") + name + kOwnType);
  }
}

TEST(PluginCallsTest, ATypeOfAWritersOwnBecomesAnErrorInEachCall) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("throwing_writer", PluginKind::kWriter);
  const std::pair<std::string, std::function<void(Writer&)>> calls[] = {
      {"open", [](Writer& it) { it.open(); }}, {"write", [](Writer& it) { it.write({}); }}, {"flush", [](Writer& it) { it.flush(); }}};
  for (const auto& [name, call] : calls) {
    const auto writer = host.make_writer(plugin, with(plugin, "call", name));
    EXPECT_EQ(text_of([&, &run = call] { run(*writer); }), titled("throwing_writer") + name + kOwnType);
  }
}

TEST(PluginCallsTest, ATypeOfABackendsOwnBecomesAnError) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("throwing_backend", PluginKind::kBackend);
  const auto backend = host.make_backend(plugin, with(plugin, "call", "get_state"));
  EXPECT_EQ(backend->global_step_completed(), 0);
  EXPECT_EQ(text_of([&] { (void)backend->get_state(); }), titled("throwing_backend") + "get_state" + kOwnType);
}

TEST(PluginCallsTest, TheWorkingFolderIsChangedBack) {
  testing::RecordingLogger logger;
  PluginHost host({kPlugins}, {.logger = &logger});
  const LoadedPlugin& plugin = host.load("changes_folder", PluginKind::kCheckpointer);
  const std::string before = fs::current_path();
  const auto warning = [&](const std::string& call) {
    return titled("changes_folder") + call + " changed the working folder to '/'; it is '" + before + "' again; a plugin names files by their whole paths instead";
  };
  (void)host.make_checkpointer(plugin, with(plugin, "call", "make"));
  EXPECT_EQ(fs::current_path(), before);
  host.make_checkpointer(plugin, Options(plugin.options))->save({}, SavePoint{});
  EXPECT_EQ(fs::current_path(), before);
  EXPECT_THAT(logger.warnings(), ElementsAre(warning("make_checkpointer"), warning("save")));
}

struct WaitingLogger : Logger {
  void log(LogLevel, std::string_view line) noexcept override {
    const std::lock_guard lock(mutex);
    lines.emplace_back(line);
    changed.notify_all();
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> lines;
};

TEST(PluginCallsTest, ACallThatTakesLongIsWarnedOfWhileItLasts) {
  const testing::TempFolder folder;
  WaitingLogger logger;
  PluginHost host({kPlugins}, {.logger = &logger}, 0.05);
  const LoadedPlugin& plugin = host.load("takes_long", PluginKind::kCheckpointer);
  const auto checkpointer = host.make_checkpointer(plugin, with(plugin, "until", (folder / "go_on").string()));
  std::thread saving([&] { checkpointer->save({}, SavePoint{}); });
  std::unique_lock lock(logger.mutex);
  EXPECT_TRUE(logger.changed.wait_for(lock, std::chrono::seconds(60), [&] { return logger.lines.size() >= 2; }));
  lock.unlock();
  std::ofstream(folder / "go_on");
  saving.join();
  ASSERT_GE(logger.lines.size(), 2U);
  EXPECT_EQ(logger.lines[0], titled("takes_long") + "save has taken 0.05 s and goes on");
  EXPECT_EQ(logger.lines[1], titled("takes_long") + "save has taken 0.1 s and goes on");
}

}  // namespace
}  // namespace marlin
