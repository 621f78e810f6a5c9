// What a test says about a call that must fail.
#pragma once

#include <gmock/gmock.h>

#include <string>

#include "marlin/sdk/error.h"

namespace marlin::testing {

/// The call throws an Error of that code whose text holds that part.
template <class Call>
void expect_error(Errc code, const std::string& part, const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_STREQ(to_string(error.code()), to_string(code));
    EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "no error, expected one with '" << part << "'";
}

}  // namespace marlin::testing
