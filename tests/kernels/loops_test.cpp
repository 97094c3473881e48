// Repeats the calls that `record_loops.py` recorded, on several threads, and compares what they
// write.
//
//     loops_test FILE
//
// Every array is a block of its own that ends where the array ends, so that a sanitizer sees what
// is read or written beside it. Every other array begins at an address that only its numbers
// divide.
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "interface.h"

constexpr int THREADS = 3, MOST_ARRAYS = 64;
#ifdef MEMCHECK
constexpr bool FILLS = false;  // valgrind tells what was never written
#else
constexpr bool FILLS = true;  // what was never written is NaN
#endif

// Every function takes integers and addresses, as ctypes hands them over; a pass takes a `Call` and
// the counter of its tasks.
using Function = i64(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64);
constexpr int MOST_ARGUMENTS = 12;
struct Named {
  const char* name;
  Function* function;
  i64 calls;
};
#define FUNCTIONS(of)                                                                     \
  of(forward) of(forward_tiles) of(merge_forward) of(weights) of(by_destination)          \
      of(by_destination_tiles) of(merge_by_destination) of(by_source) of(by_source_tiles) \
          of(merge_by_source) of(weigh_gradients) of(group) of(windows)
#define DECLARE(name) extern "C" Function graphattn_##name;
#define NAME(name) {#name, graphattn_##name, 0},
FUNCTIONS(DECLARE)
static Named NAMES[] = {FUNCTIONS(NAME)};

// `CALL` and `ARRAY` of record_loops.py.
struct Recorded {
  char label[96], function[32];
  i64 result, tasks, words, arrays;
};
struct Array {
  i64 word;
  char name[32];
  i64 dtype, size;
  double allowed;
  i64 blank, before, after;
};
struct Contents {
  i64 bytes;
  const char* data;
};

// --- calls ---------------------------------------------------------------------------------------

struct Team {
  Function* pass;
  const i64* words;
  i64 counter, failed;
  pthread_barrier_t start;
};

static void* work(void* given) {
  Team& team = *(Team*)given;
  pthread_barrier_wait(&team.start);
  if (team.pass((i64)team.words, (i64)&team.counter, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    __atomic_store_n(&team.failed, 1, __ATOMIC_RELAXED);
  return nullptr;
}

static i64 run_pass(Function* pass, const i64* words, i64 tasks) {
  const unsigned threads = tasks > 1 ? THREADS : 1;
  Team team = {pass, words, 0, 0, {}};
  pthread_t helpers[THREADS];
  pthread_barrier_init(&team.start, nullptr, threads);
  for (unsigned t = 1; t < threads; ++t)
    if (pthread_create(&helpers[t], nullptr, work, &team)) abort();
  work(&team);
  for (unsigned t = 1; t < threads; ++t) pthread_join(helpers[t], nullptr);
  pthread_barrier_destroy(&team.start);
  return team.failed;
}

static i64 run(const Recorded& call, const i64* w) {
  for (Named& found : NAMES)
    if (!strcmp(found.name, call.function)) {
      ++found.calls;
      if (call.words == sizeof(Call) / 8) return run_pass(found.function, w, call.tasks);
      if (call.words > MOST_ARGUMENTS) abort();
      return found.function(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10],
                            w[11]);
    }
  printf("loops_test.cpp does not list %s\n", call.function);
  exit(1);
}

// --- comparison ----------------------------------------------------------------------------------

static double number_at(i64 dtype, const void* x, i64 i) {
  return dtype == FLOAT32    ? ((const float*)x)[i]
         : dtype == FLOAT64  ? ((const double*)x)[i]
         : dtype == BFLOAT16 ? number(((const bfloat16*)x)[i])
                             : number(((const float16*)x)[i]);
}

// Whether an array is as it was recorded; if not, print the first number that differs.
static bool is_same(const Recorded& call, const Array& array, const void* got, Contents wanted) {
  if (array.dtype > FLOAT16) {
    if (!memcmp(got, wanted.data, wanted.bytes)) return true;
    printf("%s: %s: %s differs\n", call.label, call.function, array.name);
    return false;
  }
  const i64 count = wanted.bytes / array.size;
  double largest = 1;
  for (i64 i = 0; i < count; ++i) {
    const double size = fabs(number_at(array.dtype, wanted.data, i));
    if (size > largest && size < INF) largest = size;
  }
  for (i64 i = 0; i < count; ++i) {
    const double want = number_at(array.dtype, wanted.data, i);
    if (!FILLS && array.blank && want != want) continue;
    const double have = number_at(array.dtype, got, i);
    const bool equal = have == want || (have != have && want != want);
    if (equal || fabs(have - want) <= array.allowed * largest) continue;
    printf("%s: %s: %s[%lld] is %.9g, not %.9g (largest %.3g)\n", call.label, call.function,
           array.name, i, have, want, largest);
    return false;
  }
  return true;
}

// --- the file ------------------------------------------------------------------------------------

static bool repeat(const Recorded& call, const i64* recorded_words, const Array* arrays,
                   const Contents* contents, i64 which) {
  i64 words[sizeof(Call) / 8] = {};
  char *blocks[MOST_ARRAYS], *data[MOST_ARRAYS];
  if (call.words > (i64)(sizeof(Call) / 8) || call.arrays > MOST_ARRAYS) abort();
  memcpy(words, recorded_words, call.words * 8);
  for (i64 i = 0; i < call.arrays; ++i) {
    const Contents before = contents[arrays[i].before];
    const i64 shift = (which + i) % 2 * arrays[i].size;
    blocks[i] = (char*)malloc(before.bytes + shift);
    data[i] = blocks[i] + shift;
    if (!arrays[i].blank) memcpy(data[i], before.data, before.bytes);
    else if (FILLS) memset(data[i], 0xff, before.bytes);
    words[arrays[i].word] = (i64)data[i];
  }
  bool same = run(call, words) == call.result;
  if (!same)
    printf("%s: %s returns another number than %lld\n", call.label, call.function, call.result);
  for (i64 i = 0; i < call.arrays; ++i) {
    same &= is_same(call, arrays[i], data[i], contents[arrays[i].after]);
    free(blocks[i]);
  }
  return same;
}

int main(int, char** arguments) {
  FILE* file = fopen(arguments[1], "rb");
  if (!file || fseek(file, 0, SEEK_END)) return perror(arguments[1]), 1;
  const i64 bytes = ftell(file);
  char *all = (char*)malloc(bytes), *at = all + 8, *end = all + bytes;
  rewind(file);
  if (fread(all, 1, bytes, file) != (size_t)bytes) return perror(arguments[1]), 1;
  fclose(file);
  const i64 count = *(i64*)all;
  Contents* contents = (Contents*)malloc(count * sizeof(Contents));
  for (i64 i = 0; i < count; ++i) {
    contents[i] = {*(i64*)at, at + 8};
    at += 8 + (contents[i].bytes + 7) / 8 * 8;
  }
  i64 passed = 0, failed = 0;
  while (at < end) {
    const Recorded& call = *(const Recorded*)at;
    const i64* words = (const i64*)(&call + 1);
    const Array* arrays = (const Array*)(words + call.words);
    ++(repeat(call, words, arrays, contents, passed + failed) ? passed : failed);
    at = (char*)(arrays + call.arrays);
  }
  for (const Named& named : NAMES)
    if (!named.calls) ++failed, printf("%s was never called\n", named.name);
  printf("%lld passed, %lld failed\n", passed, failed);
  free(contents), free(all);
  return failed || !passed;
}
