// Here rather than with the plugin host's tests, since what is tested is not exported from libmarlin.
#include "plugins/plugin_file.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "marlin/sdk/error.h"
#include "temp_folder.h"

namespace marlin {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

std::string bytes_of(const std::string& name) {
  std::ifstream in(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

const std::string kGood = MARLIN_BINARY_DIR "/bad_plugins/libgood_writer.so";

TEST(PluginFileTest, TheFactsAreReadWithoutLoading) {
  const PluginFile file = read_plugin_file(kGood);
  const BuildFacts here;
  EXPECT_EQ(file.name, "good_writer");
  EXPECT_EQ(file.version, "1");
  EXPECT_THAT(file.kinds, ElementsAre(PluginKind::kWriter));
  EXPECT_EQ(file.facts.torch.view(), TORCH_VERSION);
  EXPECT_EQ(file.facts.marlin.view(), MARLIN_VERSION);
  EXPECT_EQ(file.facts.compiler.view(), here.compiler.view());
  EXPECT_EQ(file.facts.cxx_standard, 202002U);
  EXPECT_THAT(file.needed, Contains("libmarlin_sdk.so"));
  EXPECT_FALSE(file.holds_torch);
  EXPECT_EQ(build_differences(file), std::nullopt);
  EXPECT_EQ(second_torch(file), std::nullopt);
}

TEST(PluginFileTest, AnotherMagicIsRefused) {
  std::string bytes = bytes_of(kGood);
  const size_t at = bytes.find("MARLINP1");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 7] = '2';
  const testing::TempFolder folder;
  std::ofstream(folder / "libgood_writer.so", std::ios::binary) << bytes;
  EXPECT_THAT([&] { (void)read_plugin_file((folder / "libgood_writer.so").string()); }, ThrowsMessage<Error>(HasSubstr("no plugin descriptor of libmarlin")));
}

TEST(PluginFileTest, AnotherSizeOfTheDescriptorIsADifference) {
  PluginFile file = read_plugin_file(kGood);
  ++file.descriptor_size;
  EXPECT_THAT(build_differences(file).value_or(""), HasSubstr("descriptor size"));
}

TEST(PluginFileTest, ALibTorchOfItsOwnIsKnownBeforeItIsLoaded) {
  PluginFile file = read_plugin_file(kGood);
  for (const std::string name : {"libc10_cuda.so", "libtorch_cpu.so", "libtorch_cpu_extras.so"}) {
    file.needed = {name};
    EXPECT_EQ(second_torch(file), std::nullopt) << name;
  }
  for (const std::string name : {"libc10-0123abcd.so", "libtorch_cpu.so.2"}) {
    file.needed = {name};
    EXPECT_THAT(second_torch(file).value_or(""), StartsWith("it needs " + name + ", a second LibTorch beside this program's lib"));
  }
  file.needed.clear();
  file.holds_torch = true;
  EXPECT_THAT(second_torch(file).value_or(""), StartsWith("LibTorch's own code is linked into it"));
}

// Any number in a damaged file may be anything: it must be read or refused, never followed outside of the file.
TEST(PluginFileTest, NoDamageTakesTheReaderDown) {
  const std::string whole = bytes_of(kGood);
  ASSERT_GT(whole.size(), 4096U);
  const std::string path = std::filesystem::temp_directory_path() / ("marlin_damaged_" + std::to_string(::getpid()) + ".so");
  std::mt19937 random(4);
  int refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::string bytes = whole;
    for (int changes = 1 + static_cast<int>(random() % 4); changes > 0; --changes) {
      // The header and the section table, at either end of the file, are what the reader goes by.
      const size_t at = random() % 2 == 0 ? random() % 1024 : bytes.size() - 1 - random() % 2048;
      bytes[at] = static_cast<char>(random() % 3 == 0 ? 0xff : random());
    }
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      (void)read_plugin_file(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::kPlugin);
      ++refused;
    }
  }
  std::filesystem::remove(path);
  EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace marlin
