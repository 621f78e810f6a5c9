#include <marlin/core/version.h>

int main() { return marlin::version()[0] == '\0'; }
