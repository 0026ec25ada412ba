// The trial of a processor alone (trial.hpp), with matrix tiles that are emulated and may be withheld or wrong.
#include "trial.hpp"

extern "C" __attribute__((visibility("default"))) int32_t probe_trial(bool permitted, bool faulty) {
  amx_emulated::permitted = permitted;
  amx_emulated::faulty = faulty;
  return ic::try_processor();
}
