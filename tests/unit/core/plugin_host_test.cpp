#include "marlin/core/plugin_host.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"
#include "throws_error.h"

namespace marlin {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using ::testing::StrEq;
using testing::ThrowsError;

const std::string kPlugins = MARLIN_BINARY_DIR "/bad_plugins";

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::kPlugin) << error.what();
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "not refused";
}

class PluginHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("MARLIN_PLUGIN_PATH");
    before_ = fs::current_path();
    folder_ = fs::temp_directory_path() / ("marlin_plugins_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
    fs::current_path(folder_);
  }
  void TearDown() override {
    fs::current_path(before_);
    fs::remove_all(folder_);
    ::unsetenv("MARLIN_PLUGIN_PATH");
  }

  [[nodiscard]] static std::string refusal_of(const std::string& name, PluginKind wanted = PluginKind::kCheckpointer) {
    PluginHost host({kPlugins}, {});
    return refusal([&] { (void)host.load(name, wanted); });
  }
  [[nodiscard]] static std::string file(const std::string& name) { return kPlugins + "/lib" + name + ".so"; }
  static void write(const std::string& name, const std::string& bytes) { std::ofstream(name, std::ios::binary) << bytes; }
  [[nodiscard]] static std::string bytes_of(const std::string& name) {
    std::ifstream in(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  [[nodiscard]] std::string here(const std::string& name) const { return (folder_ / name).string(); }

 private:
  fs::path before_, folder_;
};

TEST_F(PluginHostTest, APluginIsLoadedByItsNameAndSaysWhatItIs) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("good", PluginKind::kCheckpointer);
  EXPECT_EQ(plugin.name, "good");
  EXPECT_EQ(plugin.version, "1.2.3");
  EXPECT_EQ(plugin.file, file("good"));
  EXPECT_EQ(plugin.kind, PluginKind::kCheckpointer);
  ASSERT_EQ(plugin.options.size(), 2U);
  EXPECT_EQ(plugin.options[0].name, "label");
  EXPECT_EQ(plugin.options[1].default_value, "3");
}

TEST_F(PluginHostTest, ItsCheckpointerKeepsItsOptionsAndCarriesItsName) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("good", PluginKind::kCheckpointer);
  Options options(plugin.options);
  options.set("label", "mine");
  const auto checkpointer = host.make_checkpointer(plugin, options);
  EXPECT_EQ(checkpointer->name(), "good");
  Checkpoint checkpoint;
  checkpoint.trainer_state.set("epoch", 2);
  EXPECT_THAT(checkpointer->save(checkpoint, 2), ElementsAre("mine:2"));
  EXPECT_EQ(checkpointer->load().trainer_state.at("epoch").as_int(), 2);
  EXPECT_EQ(refusal([&] { (void)checkpointer->save_model({}, 1); }), "plugin 'good' (" + file("good") + "): save_model failed: no room for models");
}

TEST_F(PluginHostTest, AWriterWithoutOptionsAndWithoutASymbolTableIsMade) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("good_writer", PluginKind::kWriter);
  EXPECT_TRUE(plugin.options.empty());
  host.make_writer(plugin, Options())->write({});
}

TEST_F(PluginHostTest, TheSameFileIsLoadedOnceHoweverItIsNamed) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin* first = &host.load("good", PluginKind::kCheckpointer);
  fs::create_symlink(file("good"), "libgood.so");
  EXPECT_EQ(&host.load(kPlugins + "/../bad_plugins/libgood.so", PluginKind::kCheckpointer), first);
  EXPECT_EQ(&host.load("./libgood.so", PluginKind::kCheckpointer), first);
  EXPECT_EQ(&host.load("good", PluginKind::kCheckpointer), first);
}

TEST_F(PluginHostTest, ALibraryStaysLoadedAfterTheHostIsGone) {
  { (void)PluginHost({kPlugins}, {}).load("good", PluginKind::kCheckpointer); }
  (void)refusal_of("duplicate_option");
  for (const char* name : {"good", "duplicate_option"}) {
    void* handle = ::dlopen(file(name).c_str(), RTLD_NOW | RTLD_NOLOAD);
    ASSERT_NE(handle, nullptr) << name;
    ::dlclose(handle);
  }
}

TEST_F(PluginHostTest, FoldersAreThoseGivenThenTheEnvironmentsThenTheInstalled) {
  ::setenv("MARLIN_PLUGIN_PATH", "/c::/d:", 1);
  const auto folders = PluginHost({"/a", "", "/b"}, {}).folders();
  ASSERT_EQ(folders.size(), 5U);
  EXPECT_THAT(std::vector<std::string>(folders.begin(), folders.end() - 1), ElementsAre("/a", "/b", "/c", "/d"));
  EXPECT_EQ(folders.back(), MARLIN_BINARY_DIR "/lib/marlin/plugins");
}

TEST_F(PluginHostTest, TheFirstFolderThatHasTheNameWins) {
  fs::create_directories("first");
  write("first/libgood.so", "not a library");
  ::setenv("MARLIN_PLUGIN_PATH", kPlugins.c_str(), 1);
  EXPECT_THAT(refusal([&] { (void)PluginHost({here("first")}, {}).load("good", PluginKind::kCheckpointer); }), StartsWith("plugin " + here("first/libgood.so: ")));
  EXPECT_EQ(PluginHost({here("none")}, {}).load("good", PluginKind::kCheckpointer).file, file("good"));
}

TEST_F(PluginHostTest, AvailableNamesWhatTheFoldersHold) {
  write("libmine.so", "");
  write("other.so", "");
  write("libmine.so.1", "");
  const auto names = PluginHost({here(""), kPlugins, here("none")}, {}).available();
  EXPECT_THAT(names, Contains("mine"));
  EXPECT_THAT(names, Contains("good"));
  EXPECT_THAT(names, Not(Contains("other")));
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
}

TEST_F(PluginHostTest, AnUnknownNameSaysWhereItLookedWhatIsThereAndTheNearest) {
  write("libbest_k.so", "");
  write("libcsv.so", "");
  PluginHost host({here("."), here("none")}, {});
  const std::string message = refusal([&] { (void)host.load("bestk", PluginKind::kCheckpointer); });
  EXPECT_THAT(message, StartsWith("no plugin 'bestk': there is no libbestk.so in " + here(".") + ", " + here("none") +
                                  " (no such folder), " MARLIN_BINARY_DIR "/lib/marlin/plugins"));
  EXPECT_THAT(message, HasSubstr("; plugins found there: best_k, csv"));
  EXPECT_THAT(message, HasSubstr(" (did you mean best_k?); name its folder with --plugin_path, or its file with a path"));
  EXPECT_THAT(refusal([&] { (void)host.load("libcsv.so", PluginKind::kWriter); }), HasSubstr("(did you mean csv?); a file is named with a path, ./libcsv.so"));
  EXPECT_THAT(refusal([&] { (void)host.load("", PluginKind::kWriter); }), StartsWith("--writers: the name of a plugin is empty"));
}

TEST_F(PluginHostTest, APathIsTakenFromTheWorkingFolder) {
  fs::copy_file(file("good"), "libgood.so");
  EXPECT_EQ(PluginHost({}, {}).load("./libgood.so", PluginKind::kCheckpointer).file, here("libgood.so"));
  EXPECT_EQ(refusal_of("./libnone.so"), "plugin " + here("libnone.so") + ": no such file; './libnone.so' holds '/', so it is a path from the working folder; "
                                        "a plain name is searched for");
}

TEST_F(PluginHostTest, WhatIsNoLibraryIsRefusedBeforeItIsLoaded) {
  write("libtext.so", "#!/bin/sh\necho hello\n");
  write("libempty.so", "");
  fs::create_directories("libfolder.so");
  EXPECT_EQ(refusal_of("./libtext.so"), "plugin " + here("libtext.so") + ": not a shared library (no ELF file); name the .so that the plugin's build made");
  EXPECT_EQ(refusal_of("./libempty.so"), "plugin " + here("libempty.so") + ": the file is empty; build or copy it again");
  EXPECT_EQ(refusal_of("./libfolder.so"), "plugin " + here("libfolder.so") + ": this is a folder; name the .so file in it");
  EXPECT_THAT(refusal_of("/dev/null"), HasSubstr("this is not a regular file"));
  EXPECT_THAT(refusal_of("no_descriptor"), StartsWith("plugin " + file("no_descriptor") + ": a shared library, but no plugin of libmarlin: it exports no marlin_plugin; put MARLIN_PLUGIN"));
  EXPECT_THAT(refusal_of("/proc/self/exe"), HasSubstr("exports no marlin_plugin"));
}

TEST_F(PluginHostTest, AnUnreadableFileSaysSo) {
  fs::copy_file(file("good"), "libgood.so");
  fs::permissions("libgood.so", fs::perms::none);
  const bool is_root = ::geteuid() == 0;  // who reads everything
  ASSERT_EQ(is_root ? ::seteuid(65534) : 0, 0);
  const std::string message = refusal_of("./libgood.so");
  ASSERT_EQ(is_root ? ::seteuid(0) : 0, 0);
  EXPECT_EQ(message, "plugin " + here("libgood.so") + ": cannot be opened: Permission denied; make it readable for this user");
}

TEST_F(PluginHostTest, ATruncatedLibraryIsRefusedWhereverItEnds) {
  const std::string whole = bytes_of(file("good_writer"));
  for (size_t size = 1; size < whole.size(); size += whole.size() / 50) {
    write("libgood_writer.so", whole.substr(0, size));
    ASSERT_THAT(refusal_of("./libgood_writer.so", PluginKind::kWriter), StartsWith("plugin " + here("libgood_writer.so: "))) << size;
  }
}

TEST_F(PluginHostTest, UndefinedSymbolsAreReportedInTheLoadersWords) {
  EXPECT_EQ(refusal_of("undefined_symbol"), "plugin 'undefined_symbol' (" + file("undefined_symbol") + "): cannot be loaded: " + file("undefined_symbol") +
                                                ": undefined symbol: marlin_test_function_that_is_nowhere; link the plugin with what it uses, or build it again "
                                                "with the headers of libmarlin " MARLIN_VERSION);
}

TEST_F(PluginHostTest, AnotherSdkIsRefusedBeforeAnyOfItsCodeRuns) {
  ::unsetenv("MARLIN_TEST_PLUGIN_CODE_RAN");
  EXPECT_EQ(refusal_of("later_abi"), concat("plugin ", file("later_abi"), ": built with the later SDK ABI ", kPluginAbi + 1, " (here ", kPluginAbi,
                                            "); build it again with the headers of libmarlin " MARLIN_VERSION ", or run it with the libmarlin that it was built for: this one is too old"));
  EXPECT_EQ(std::getenv("MARLIN_TEST_PLUGIN_CODE_RAN"), nullptr);
}

TEST_F(PluginHostTest, EverythingThatWasBuiltOtherwiseIsToldAtOnce) {
  const BuildFacts here;
  if (here.sanitizer != 0) GTEST_SKIP() << "the message names this build's sanitizer";
  EXPECT_EQ(refusal_of("other_torch"),
            concat("plugin ", file("other_torch"), ": built with LibTorch 99.1 (here ", here.torch_major, ".", here.torch_minor,
                   "), _GLIBCXX_USE_CXX11_ABI 7 (here ", here.cxx11_abi, "), _GLIBCXX_DEBUG 8 (here 0), sanitizer unknown (here none); build it again "
                   "against LibTorch ", here.torch_major, ".", here.torch_minor, ", with -D_GLIBCXX_USE_CXX11_ABI=", here.cxx11_abi,
                   ", without -D_GLIBCXX_DEBUG, without a sanitizer"));
}

TEST_F(PluginHostTest, TheDescriptorMustSayTheNameOfTheFile) {
  EXPECT_EQ(refusal_of("wrong_name"), "plugin " + file("wrong_name") + ": its descriptor says that it is 'right_name', its file name that it is 'wrong_name'; "
                                      "rename the file or set .name = \"wrong_name\" in MARLIN_PLUGIN(...)");
  fs::copy_file(file("good"), "good.so");
  fs::copy_file(file("good"), "libgo.od.so");
  EXPECT_THAT(refusal_of("./good.so"), HasSubstr("a plugin's file is named libNAME.so"));
  EXPECT_THAT(refusal_of("./libgo.od.so"), HasSubstr("a plugin's file is named libNAME.so"));
  PluginHost host({kPlugins}, {});
  (void)host.load("good", PluginKind::kCheckpointer);
  fs::create_symlink(file("good"), "libother.so");
  EXPECT_THAT(refusal([&] { (void)host.load("./libother.so", PluginKind::kCheckpointer); }), HasSubstr("its descriptor says that it is 'good'"));
}

TEST_F(PluginHostTest, AnEarlierSdkIsRefusedByWhatAllDescriptorsHave) {
  if (BuildFacts().sanitizer != 0) GTEST_SKIP() << "the fixture says that it has no sanitizer";
  EXPECT_EQ(refusal_of("earlier_abi"), concat("plugin ", file("earlier_abi"), ": built with the earlier SDK ABI ", kPluginAbi - 1, " (here ", kPluginAbi,
                                              "); build it again with the headers of libmarlin " MARLIN_VERSION));
}

TEST_F(PluginHostTest, AnotherStandardLibraryOrASanitizerIsRefused) {
  if (BuildFacts().sanitizer != 0) GTEST_SKIP() << "the fixtures are built to differ from a plain build";
  EXPECT_EQ(refusal_of("cxx11_abi"), "plugin " + file("cxx11_abi") + ": built with _GLIBCXX_USE_CXX11_ABI 0 (here 1); build it again with -D_GLIBCXX_USE_CXX11_ABI=1");
  EXPECT_EQ(refusal_of("glibcxx_debug"), "plugin " + file("glibcxx_debug") + ": built with _GLIBCXX_DEBUG 1 (here 0); build it again without -D_GLIBCXX_DEBUG");
  EXPECT_EQ(refusal_of("sanitized"), "plugin " + file("sanitized") + ": built with sanitizer AddressSanitizer (here none); build it again without a sanitizer");
}

TEST_F(PluginHostTest, A32BitLibraryIsRefused) {
  std::string bytes = bytes_of(file("good"));
  bytes[4] = 1;  // EI_CLASS: ELFCLASS32
  write("libgood.so", bytes);
  EXPECT_EQ(refusal_of("./libgood.so"), "plugin " + here("libgood.so") + ": a 32-bit library; build it for this 64-bit machine");
}

TEST_F(PluginHostTest, ASecondLibTorchIsRefusedBeforeItIsLoaded) {
  ::unsetenv("MARLIN_TEST_PLUGIN_CODE_RAN");
  const std::string remedy = ", and two of them in one process cannot share tensors; link it with marlin::sdk, which brings the LibTorch of this program, and with no other";
  EXPECT_EQ(refusal_of("own_torch"), "plugin " + file("own_torch") + ": it needs libc10-0123abcd.so, a second LibTorch beside this program's libc10.so" + remedy);
  EXPECT_EQ(std::getenv("MARLIN_TEST_PLUGIN_CODE_RAN"), nullptr);
  EXPECT_EQ(refusal_of("holds_torch"), "plugin " + file("holds_torch") + ": LibTorch's own code is linked into it, and two LibTorchs in one process cannot share tensors; "
                                       "link it with marlin::sdk, which brings the LibTorch of this program, and with no other");
}

TEST_F(PluginHostTest, TwoFilesOfOneNameAreRefused) {
  PluginHost host({kPlugins}, {});
  (void)host.load("good", PluginKind::kCheckpointer);
  fs::copy_file(file("good"), "libgood.so");
  EXPECT_EQ(refusal([&] { (void)host.load("./libgood.so", PluginKind::kCheckpointer); }),
            "plugin " + here("libgood.so") + ": there is a checkpointer 'good' already, from " + file("good") + "; two of one name cannot be told apart: rename one of them");
}

// In a process of its own: the exception leaves the loader's lock held, for which other threads would wait for ever.
TEST_F(PluginHostTest, AStaticInitialiserThatThrowsIsRefused) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer's dlopen lets no exception through";
#else
  const auto refuse = [&] {
    const std::string expected = "plugin 'throws_at_load' (" + file("throws_at_load") + "): cannot be loaded: a static initialiser threw: no licence for this machine";
    const std::string said = refusal_of("throws_at_load");
    std::fprintf(stderr, "%s\n", said.c_str());
    ::_exit(said == expected ? 7 : 8);
  };
  EXPECT_EXIT(refuse(), ::testing::ExitedWithCode(7), "no licence for this machine");
#endif
}

TEST_F(PluginHostTest, TheNameOfABuiltInPartIsTaken) {
  EXPECT_EQ(refusal_of("stdout", PluginKind::kWriter), "plugin " + file("stdout") + ": 'stdout' is the name of a built-in writer; give the plugin another one");
  EXPECT_EQ(refusal_of("default"), "plugin " + file("default") + ": 'default' is the name of a built-in checkpointer; give the plugin another one");
}

TEST_F(PluginHostTest, APluginOfAnotherKindSaysWhichFlagItIsFor) {
  EXPECT_EQ(refusal_of("good", PluginKind::kWriter), "plugin 'good' (" + file("good") + "): is a checkpointer, not a writer; name it with --checkpointer");
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("good", PluginKind::kCheckpointer);
  EXPECT_THAT(refusal([&] { (void)host.load("good", PluginKind::kBackend); }), HasSubstr("is a checkpointer, not a backend"));
  EXPECT_THAT(refusal([&] { (void)host.make_writer(plugin, Options()); }), HasSubstr("is a checkpointer, not a writer"));
  EXPECT_THAT(refusal([&] { (void)host.make_backend(plugin, Options()); }), HasSubstr("is a checkpointer, not a backend"));
  EXPECT_THAT(refusal_of("two_kinds"), HasSubstr("its descriptor sets 2 of make_checkpointer, make_backend, make_writer and make_device; it must set exactly one"));
}

TEST_F(PluginHostTest, AnOptionTableThatIsNotInOrderIsRefusedWithAllOfIt) {
  EXPECT_EQ(refusal_of("duplicate_option"),
            "plugin 'duplicate_option' (" + file("duplicate_option") + "): its option table is not in order: option a is there twice; "
            "'' is not a name (lower-case letters, digits, _ and .); 'B c' is not a name (lower-case letters, digits, _ and .); "
            "the default of d: must be a whole number, got 'many'; the default of e: must be at least 1, got 0; option f has no type; correct the table");
  EXPECT_EQ(refusal_of("host_option"),
            "plugin 'host_option' (" + file("host_option") + "): its option table is not in order: option period is one that every checkpointer has from the "
            "host; option verify is one that every checkpointer has from the host; correct the table");
  EXPECT_EQ(refusal_of("throwing_options"),
            "plugin 'throwing_options' (" + file("throwing_options") + "): options failed with an exception of type int, which is no std::exception");
}

TEST_F(PluginHostTest, WhateverAFactoryThrowsBecomesAnError) {
  PluginHost host({kPlugins}, {});
  const LoadedPlugin& plugin = host.load("throws_when_made", PluginKind::kCheckpointer);
  Options options(plugin.options);
  options.set("how", "standard");
  EXPECT_EQ(refusal([&] { (void)host.make_checkpointer(plugin, options); }),
            "plugin 'throws_when_made' (" + file("throws_when_made") + "): make_checkpointer failed: two\\nlines");
  options.set("how", "marlin");
  EXPECT_THAT([&] { (void)host.make_checkpointer(plugin, options); },
              ThrowsError(Errc::kIo, StrEq("plugin 'throws_when_made' (" + file("throws_when_made") + "): make_checkpointer failed: the store is closed")))
      << "an Error of a plugin keeps its code";
  EXPECT_EQ(refusal([&] { (void)host.make_checkpointer(host.load("throws_own_type", PluginKind::kCheckpointer), Options()); }),
            "plugin 'throws_own_type' (" + file("throws_own_type") + "): make_checkpointer failed with an exception of type mine::Oops, which is no std::exception");
}

TEST_F(PluginHostTest, AFactoryThatReturnsNullIsRefused) {
  PluginHost host({kPlugins}, {});
  EXPECT_EQ(refusal([&] { (void)host.make_checkpointer(host.load("returns_null", PluginKind::kCheckpointer), Options()); }),
            "plugin 'returns_null' (" + file("returns_null") + "): make_checkpointer returned null; it must return what it made, or throw");
}

}  // namespace
}  // namespace marlin
