/* A TensorRT library without TensorRT: objects whose every virtual function asks a handler what to return.

   The real Python bindings of TensorRT run on it. They need eight functions of the library; all else they reach through
   virtual functions, either of an object itself or of the implementation that its second word points to. Here both are
   the same object. Which slot is which function is found out by calling it from Python (stub.py). x86-64 and the
   Itanium C++ ABI: integers in registers, a structure returned through a hidden first argument. */
#include <stdint.h>
#include <string.h>

#define OBJECTS 32

typedef intptr_t word;
typedef word (*Function)(word, word, word, word, word);
typedef struct {
  const Function* functions;
  void* implementation;
} Object;

/* object (or -1 for a function of the library), slot, arguments, where a returned structure goes (or null) */
static word (*handler)(int object, int slot, word, word, word, word* structure);
static Object objects[OBJECTS];

static word call(int slot, word a, word b, word c, word d, word e) {
  const word offset = a - (word)objects;
  if (offset >= 0 && offset < (word)sizeof objects) return handler((int)(offset / sizeof(Object)), slot, b, c, d, 0);
  handler((int)((b - (word)objects) / sizeof(Object)), slot, c, d, e, (word*)a);
  return a;
}

#define F(n) \
  static word f##n(word a, word b, word c, word d, word e) { return call(0x##n, a, b, c, d, e); }
#define F16(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) F(n##8) F(n##9) F(n##a) F(n##b) F(n##c) F(n##d) F(n##e) F(n##f)
F16(0) F16(1) F16(2) F16(3) F16(4) F16(5) F16(6) F16(7) F16(8) F16(9) F16(a) F16(b)
#undef F
#define F(n) f##n,
/* Before the functions: the offset to the whole object and its type, which is unknown. */
static const Function table[] = {0, 0, F16(0) F16(1) F16(2) F16(3) F16(4) F16(5) F16(6) F16(7) F16(8) F16(9) F16(a) F16(b)};

void stub_start(word (*answer)(int, int, word, word, word, word*)) {
  handler = answer;
  for (int i = 0; i < OBJECTS; ++i) objects[i] = (Object){table + 2, &objects[i]};
}
void* stub_object(int index) { return &objects[index]; }

/* The library's functions, as slots of no object. */
#define LIBRARY(slot, name) \
  word name(word a, word b, word c) { return handler ? handler(-1, slot, a, b, c, 0) : 0; }
LIBRARY(0, createInferBuilder_INTERNAL)
LIBRARY(1, createInferRuntime_INTERNAL)
LIBRARY(2, createNvOnnxParser_INTERNAL)
LIBRARY(3, createInferRefitter_INTERNAL)
LIBRARY(4, createNvOnnxParserRefitter_INTERNAL)
LIBRARY(5, getPluginRegistry)
LIBRARY(6, getBuilderPluginRegistry)
LIBRARY(7, initLibNvInferPlugins)
LIBRARY(8, getNvOnnxParserVersion)
