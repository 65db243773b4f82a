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
    ARG_OBJECT_SLOTS,
    ARG_AMBIENT,
} Arg;

/* May the instruction run Python code? KEY, VALUE: it depends on the operand. TENSOR: when tensors must be
 * read through Python. */
typedef enum { PURE, IMPURE, KEY, VALUE, TENSOR } Purity;

/* What an instruction's verdict or value rests on, as a tape sees it (_tape.c). */
typedef enum {
    REPLAY_NEVER,    /* on no tape */
    REPLAY_ROOT,     /* a parameter or a constant */
    REPLAY_DICT,     /* which dict the instance has */
    REPLAY_LOOKUP,   /* the version of the dict or class it looks in */
    REPLAY_KEYS,     /* as LOOKUP, but for the order of an OrderedDict */
    REPLAY_TYPE_OF,  /* the object's type */
    REPLAY_TYPE,     /* the object's type */
    REPLAY_IDENTITY, /* which object it is: nothing more to look at */
    REPLAY_VALUE,    /* the same, if the expected value is immutable */
    REPLAY_LENGTH,   /* the container's length */
    REPLAY_TENSOR,   /* the tensor */
} Replay;

typedef struct Instr Instr;
typedef struct Record Record;

/* Instructions first..end hang from one root; see _tape.c. */
typedef struct {
    int root;                /* the parameter, or -1: constants */
    Py_ssize_t first, end;   /* instructions */
    bool valid, export_keep; /* records are there; exported values must own a reference */
    int failures;            /* recordings since the last replay that succeeded */
    PyObject *root_value;    /* borrowed; compared, followed only if equal */
    PyTypeObject *root_type;
    Record *records;
    Py_ssize_t nrecords, room, nexports;
    PyObject **exports; /* values that are used outside, and the slots they go to */
    int *export_slots;
} Tape;

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
    Replay replay;
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
    bool first_use;   /* on a tape: the first that looks in this dict or class */
    bool exported;    /* on a tape: its value is used outside */
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
    int ntapes;
    Tape *tapes; /* they hold the first instructions, in order; the loose ones follow */
    Instr *instrs;
    int *fetch;
};

extern const Row mc_guard_rows[];

PyObject *mc_program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
void mc_instr_free(Instr *in);
bool mc_equality_is_pure(PyObject *value);
uint64_t mc_dict_version(PyObject *dict);

/* Runs instructions first..end; the index of the one that failed, or end. */
Py_ssize_t mc_guard_steps(GuardProgram *program, Py_ssize_t first, Py_ssize_t end, Run *run);

bool mc_tapes_build(GuardProgram *self, const bool *impure);
void mc_tapes_free(GuardProgram *self);
Py_ssize_t mc_tape_run(GuardProgram *program, Tape *tape, Run *run);

static inline bool mc_has_group(const Instr *in) {
    return in->op->arg == ARG_SLOTS || in->op->arg == ARG_TENSORS || in->op->arg == ARG_OBJECT_SLOTS;
}

#endif
