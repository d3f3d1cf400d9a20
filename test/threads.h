// The number of OpenMP threads for the length of a scope; afterwards what it was before.
#pragma once

#include "dev/cpu/machine.h"

class Threads {
  public:
    explicit Threads(int count) { lnfree::set_thread_count(count); }
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;
    ~Threads() { lnfree::set_thread_count(before_); }

  private:
    int before_ = lnfree::thread_count();
};
