// Names of checkpoints that say what is in them: prefix, name, step, score.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "marlin/sdk/abi.h"

namespace marlin {

/// What a name is made of.
struct NameParts {
  std::string filename_prefix = {};
  std::string name = "checkpoint";            ///< Of the only object in the file; "checkpoint" if there are several.
  std::string score_name = {};                ///< As metrics are named: a '/' stands as '_' in names.
  std::optional<double> score = {};           ///< In names: integers as they are, others with 4 decimals; inf, -inf.
  std::optional<int64_t> global_step = {};
  std::string ext = "pt";
};

/// A pattern with the placeholders {filename_prefix} {name} {score_name} {score} {global_step} {ext}, each at most once. After a colon
/// a format: {global_step:05d} for a width with leading zeros, {score:.2f} for decimals. "{{" and "}}" stand for braces.
/// @par Source ignite handlers/checkpoint.py. Differs: checked when made, and a name can be read back.
class MARLIN_ABI NamePattern {
 public:
  enum class Field : uint8_t { kPrefix, kName, kScoreName, kScore, kGlobalStep, kExt };
  /// What a name says; unset: the pattern does not.
  struct Parsed {
    std::optional<double> score;
    std::optional<int64_t> global_step;
  };

  /// @param option  how messages name it. @throws Error kInvalidArgument: unknown placeholder or format, a placeholder twice, an
  /// unclosed brace, a path separator, a dot at the beginning, nothing at all.
  explicit NamePattern(std::string_view pattern, std::string_view option = "filename_pattern");

  [[nodiscard]] bool has(Field field) const noexcept;
  /// Neither score nor step stand in it, so that all its names are one.
  [[nodiscard]] bool is_fixed() const noexcept { return !has(Field::kScore) && !has(Field::kGlobalStep); }
  /// @throws Error kInvalidArgument: a part that it asks for is not there, or the name would be longer than 255 bytes.
  [[nodiscard]] std::string name(const NameParts& parts) const;
  /// What `file_name` says, if it could be made of these parts with any score and step and, if parts.name is empty, any name. A counter
  /// before the extension, which unique_name() adds, is passed over.
  [[nodiscard]] std::optional<Parsed> parse(std::string_view file_name, const NameParts& parts) const;
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  struct Piece {
    std::optional<Field> field;  // unset: literal
    std::string text;            // the literal, or the format's digits
  };
  [[noreturn]] void refuse(const std::string& why) const;
  [[nodiscard]] Piece placeholder(std::string_view inside) const;
  [[nodiscard]] std::string piece(const Piece& piece, const NameParts& parts) const;
  [[nodiscard]] bool matches(size_t at, std::string_view rest, const NameParts& parts, Parsed& parsed) const;

  std::string text_;
  std::string option_;
  std::vector<Piece> pieces_;
};

/// Ignite's pattern for these parts: `{filename_prefix}_{name}_{global_step}_{score_name}={score}.{ext}` with all of them.
/// @throws Error kInvalidArgument: neither score nor step, or a score's name without a score.
[[nodiscard]] MARLIN_ABI std::string setup_filename_pattern(bool with_prefix = true, bool with_score = true, bool with_score_name = true, bool with_global_step = true);

/// As names have it: integers as they are, others with `decimals`; -0.0 and what rounds to it as 0.
[[nodiscard]] MARLIN_ABI std::string score_text(double score, int decimals = 4);

/// "model_0.7700.pt", 120 -> "model_0.7700_120.pt": the first of name, name with the step, name with step and a counter from 2 on, that
/// `taken` does not know.
[[nodiscard]] MARLIN_ABI std::string unique_name(const std::string& name, int64_t global_step, const std::function<bool(const std::string&)>& taken);

/// Whether it could not be part of a file name: a separator or a NUL is in it.
[[nodiscard]] MARLIN_ABI bool holds_separator(std::string_view text) noexcept;

}  // namespace marlin
