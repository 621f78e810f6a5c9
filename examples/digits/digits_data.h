// The digits as tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>

struct DigitsData {
  at::Tensor images;  // float32 [N, 64], 0 to 1
  at::Tensor labels;  // int64 [N], 0 to 9
};

// Where the data is: `given`, or else beside the program, in share/marlin/, or in the source tree.
std::filesystem::path find_digits(const std::string& given);

// Reads 64 grey values from 0 to 16 and the digit from each line. Throws marlin::Error naming file and line.
DigitsData read_digits(const std::filesystem::path& file);
