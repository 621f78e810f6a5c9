// EXPECT_THAT(call, ThrowsError(Errc::kIo, HasSubstr("checkpoint_2.pt"))): `call` is what must fail, as a function.
#pragma once

#include <gmock/gmock.h>

#include <ostream>
#include <string>

#include "marlin/sdk/error.h"

namespace marlin {

inline void PrintTo(Errc code, std::ostream* stream) { *stream << to_string(code); }

namespace testing {

/// The call throws an Error of that code whose text matches.
template <class TextMatcher>
auto ThrowsError(Errc code, TextMatcher text) {
  return ::testing::Throws<Error>(::testing::AllOf(::testing::Property("code", &Error::code, code),
                                                   ::testing::ResultOf("text", [](const Error& error) { return std::string(error.what()); }, text)));
}

}  // namespace testing
}  // namespace marlin
