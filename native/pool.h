// A few threads that run one function together and wait for each other inside it.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sparsight {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  // Runs work(thread) on every thread, the caller being thread 0. One call at a time.
  void run(const std::function<void(int)>& work);
  // Inside `run`: waits until all threads have come here.
  void barrier();

 private:
  void start();
  void stop();
  void forget_parent();
  void loop(int thread);

  const int size_;
  pid_t owner_ = 0;
  std::vector<std::thread> threads_;
  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<unsigned> generation_{0}, passed_{0};
  std::atomic<int> waiting_{0}, sleeping_{0};
  bool ending_ = false;
};

}  // namespace sparsight
