/* What building (_guardbuild.c) and running (_guards.c) guard programs share. */
#ifndef MINICOMPILE_GUARDS_H
#define MINICOMPILE_GUARDS_H

#include "_native.h"

/* The operands of an opcode, as they follow its name in the tuple. */
typedef enum {
    ARG_NONE,
    ARG_NUMBER,
    ARG_OBJECT,
    ARG_NAME,
    ARG_SLOT,
    ARG_SLOT_NAME,
    ARG_SLOT_KEY,
    ARG_SLOT_NUMBER,
    ARG_STRIDE, /* as ARG_SLOT_NUMBER */
    ARG_SLOT_OBJECT,
    ARG_SLOT_TUPLE,
    ARG_SLOT_RANGE,
    ARG_SLOT_SLOT,
    ARG_SLOTS,
    ARG_TENSORS, /* as ARG_SLOTS */
    ARG_TENSOR,
    ARG_OBJECT_SLOT,
    ARG_OBJECT_VALUE,
    ARG_AMBIENT,
} Arg;

/* May the instruction run Python code? KEY, VALUE: it depends on the operand. TENSOR: when tensors must be read through Python. */
typedef enum { PURE, IMPURE, KEY, VALUE, TENSOR } Purity;

typedef struct Instr Instr;

typedef struct {
    PyObject *function;
    PyObject **locals;
    Py_ssize_t nlocals;
    PyObject **slots;
    PyObject **owned; /* references to drop after the run */
    Py_ssize_t owned_count;
} Run;

typedef struct {
    const char *name;
    Arg arg;
    Purity purity;
    PyObject *(*get)(Instr *in, Run *run, bool *owned); /* a source: its value, or NULL */
    bool (*check)(Instr *in, Run *run);                 /* a check */
} Row;

typedef struct {
    Py_ssize_t size;
    struct {
        int slot;
        void *key;
    } members[];
} Group;

struct Instr {
    const Row *op;
    int slot;         /* the source it looks at, or -1 */
    int out;          /* the slot it fills, or -1 */
    int index;        /* its place in the list it was built from */
    bool keep;        /* its value must own a reference: Python code may run before its last use */
    PyObject *object; /* a name, key, expected object, function; owned */
    int64_t number;   /* an index, length, dim, second slot, lower bound */
    union {
        struct { /* last lookup in a dict */
            PyObject *cached_parent, *cached_value;
            uint64_t cached_version;
        };
        int64_t limit;
        TensorSpec *tensor;
        Ambient *ambient;
        Group *group;
        PyObject *expected; /* of PREDICATE; owned */
    };
};

struct GuardProgram {
    PyObject_HEAD
    Py_ssize_t count, nslots, nfetch;
    Instr *instrs;
    int *fetch;
};

extern const Row mc_guard_rows[];

PyObject *mc_program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
void mc_instr_free(Instr *in);
bool mc_equality_is_pure(PyObject *value);

#endif
