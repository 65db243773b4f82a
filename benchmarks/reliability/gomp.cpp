// The part of GCC's OpenMP runtime that our kernels use, on plain threads: ThreadSanitizer knows how those order
// memory accesses, and does not know it of libgomp, which is not instrumented. Linked into each sanitized library.
#include <pthread.h>

#define HIDDEN extern "C" __attribute__((visibility("hidden")))

namespace {
struct Team { int size; long next, end, step, chunk; };
struct Member { void (*body)(void*); void* data; Team* team; int number; };
__thread Member* self = nullptr;

void* run(void* given) {
  Member* before = self;
  self = (Member*)given;
  self->body(self->data);
  self = before;
  return nullptr;
}

void start(void (*body)(void*), void* data, int size, Team team) {
  team.size = size = size < 1 ? 1 : size > 64 ? 64 : size;
  Member members[64];
  pthread_t threads[64];
  for (int i = 0; i < size; ++i) members[i] = {body, data, &team, i};
  for (int i = 1; i < size; ++i) pthread_create(&threads[i], nullptr, run, &members[i]);
  run(&members[0]);
  for (int i = 1; i < size; ++i) pthread_join(threads[i], nullptr);
}
}  // namespace

HIDDEN int omp_get_thread_num(void) { return self ? self->number : 0; }
HIDDEN int omp_get_num_threads(void) { return self ? self->team->size : 1; }
HIDDEN void GOMP_parallel(void (*body)(void*), void* data, unsigned size, unsigned) { start(body, data, size, {}); }
HIDDEN void GOMP_parallel_loop_dynamic(void (*body)(void*), void* data, unsigned size, long begin, long end, long step,
                                       long chunk, unsigned) {
  start(body, data, size, {0, begin, end, step, chunk});
}
HIDDEN void GOMP_parallel_loop_nonmonotonic_dynamic(void (*body)(void*), void* data, unsigned size, long begin, long end,
                                                    long step, long chunk, unsigned) {
  start(body, data, size, {0, begin, end, step, chunk});
}
HIDDEN bool GOMP_loop_dynamic_next(long* begin, long* end) {
  Team* t = self->team;
  const long at = __atomic_fetch_add(&t->next, t->step * t->chunk, __ATOMIC_RELAXED);
  if (at >= t->end) return false;
  *begin = at;
  *end = at + t->step * t->chunk < t->end ? at + t->step * t->chunk : t->end;
  return true;
}
HIDDEN bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* end) { return GOMP_loop_dynamic_next(begin, end); }
HIDDEN void GOMP_loop_end_nowait(void) {}
