// Here rather than with the plugin host's tests, since what is tested is not exported from libmarlin.
#include "plugin_file.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "marlin/sdk/error.h"

namespace marlin {
namespace {

std::string bytes_of(const std::string& name) {
  std::ifstream in(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

TEST(PluginFileTest, TheHeadIsReadWithoutLoading) {
  const DescriptorHead head = read_descriptor_head(MARLIN_BINARY_DIR "/bad_plugins/libgood_writer.so");
  EXPECT_EQ(std::string(head.magic, sizeof head.magic), "MARLINP1");
  EXPECT_EQ(head.size, sizeof(PluginDescriptor));
  EXPECT_EQ(head.facts.torch_minor, uint32_t{TORCH_VERSION_MINOR});
  EXPECT_NO_THROW(check_build("x", head));
}

TEST(PluginFileTest, AnotherMagicIsRefused) {
  DescriptorHead head = read_descriptor_head(MARLIN_BINARY_DIR "/bad_plugins/libgood_writer.so");
  head.magic[7] = '2';
  EXPECT_THROW(check_build("x", head), Error);
}

TEST(PluginFileTest, AnotherSizeOfTheDescriptorIsRefused) {
  DescriptorHead head = read_descriptor_head(MARLIN_BINARY_DIR "/bad_plugins/libgood_writer.so");
  ++head.size;
  EXPECT_THROW(check_build("x", head), Error);
}

// Any number in a damaged file may be anything: it must be read or refused, never followed outside of the file.
TEST(PluginFileTest, NoDamageTakesTheReaderDown) {
  const std::string whole = bytes_of(MARLIN_BINARY_DIR "/bad_plugins/libgood_writer.so");
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
      (void)read_descriptor_head(path);
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
