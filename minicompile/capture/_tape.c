/* Tapes: what a guard program need look at again when it is called with the same objects as last time.
 *
 * A tape holds the instructions that hang from one root (a parameter such as `self`, or the constants) by
 * instance dicts, dict items and class attributes. When they have passed, the tape records what their
 * verdict rests on: versions of dicts and classes, types of instances, lengths of containers, tensors. A
 * later run replays these records, few and without lookups, instead of the instructions; at the first
 * difference the instructions run, decide, and are recorded anew.
 *
 * Why a recorded pointer may be followed: records are in the instructions' order, so an object is touched
 * only after the version of the dict that holds it was found unchanged, which means that this dict still
 * holds it. Version tags are never used twice, so neither a new dict nor a new class at the address of an
 * old one passes for it.
 */
#include "_guards.h"

#include <string.h>

typedef enum {
    REC_DICT,    /* *(PyObject **)object == other: the instance's dict is still this one */
    REC_VERSION, /* the dict is unchanged */
    REC_LOOKUP,  /* what the dict holds for the instruction's key is the next record's `other` */
    REC_EXPECTED,
    REC_CLASS, /* the class and its bases are unchanged */
    REC_TYPE,  /* type(object) is other */
    REC_USED,  /* the dict's length */
    REC_EMPTY, /* two dicts, often a module's hooks, are empty (the second may be the first) */
    REC_TENSOR,
    REC_CHECK, /* run the instruction's check on the object */
} RecordKind;

struct Record {
    RecordKind kind;
    void *object;
    union {
        void *other;
        uint64_t number;
        TensorSpec *tensor;
        Instr *instr;
    };
};

#define FAILURES_BEFORE_REST 4 /* recordings in a row that did not serve once ... */
#define REST 64                /* ... then so many runs without one */

/* --- versions
 * --------------------------------------------------------------------------------------------- */

static uint64_t class_version(PyObject *object) {
    PyTypeObject *type = (PyTypeObject *)object;
#if PY_VERSION_HEX < 0x030D0000
    if (!(type->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG)) {
        return 0;
    }
#endif
    return type->tp_version_tag;
}

/* --- recording
 * -------------------------------------------------------------------------------------------- */

static bool add_record(Tape *tape, RecordKind kind, void *object, uint64_t number) {
    if (tape->nrecords == tape->room) {
        Py_ssize_t room = 2 * tape->room + 16;
        Record *records = PyMem_Realloc(tape->records, (size_t)room * sizeof(Record));
        if (records == NULL) {
            return false;
        }
        tape->records = records;
        tape->room = room;
    }
    tape->records[tape->nrecords++] = (Record){kind, object, {.number = number}};
    return true;
}

static bool record_lookup(Tape *tape, Instr *in, PyObject *dict) {
    if (in->op->replay == REPLAY_KEYS) {
        return add_record(tape, REC_CHECK, dict, (uint64_t)(uintptr_t)in);
    }
    PyObject *value = PyDict_GetItemWithError(dict, in->object);
    return add_record(tape, REC_LOOKUP, dict, (uint64_t)(uintptr_t)in) &&
           add_record(tape, REC_EXPECTED, NULL, (uint64_t)(uintptr_t)value);
}

/* What a lookup in `parent` rests on: its version, noted once, or if it has none the lookup itself. */
static bool record_parent(Tape *tape, Instr *in, PyObject *parent) {
    if (PyDict_Check(parent)) {
        uint64_t version = mc_dict_version(parent);
        if (version == 0) {
            return record_lookup(tape, in, parent);
        }
        return !in->first_use || add_record(tape, REC_VERSION, parent, version);
    }
    uint64_t version = PyType_Check(parent) ? class_version(parent) : 0;
    return version != 0 && (!in->first_use || add_record(tape, REC_CLASS, parent, version));
}

static bool is_fixed_type(PyObject *type) { /* an instance's type can't be assigned to */
    return !PyType_HasFeature((PyTypeObject *)type, Py_TPFLAGS_HEAPTYPE) &&
           type != (PyObject *)&PyModule_Type;
}

static bool record_length(Tape *tape, Instr *in, PyObject *object) {
    if (PyDict_Check(object) && in->number == 0) {
        Record *last = tape->nrecords > 0 ? &tape->records[tape->nrecords - 1] : NULL;
        if (last != NULL && last->kind == REC_EMPTY && last->other == last->object) {
            last->other = object;
            return true;
        }
        return add_record(tape, REC_EMPTY, object, (uint64_t)(uintptr_t)object);
    }
    if (PyDict_Check(object)) {
        return add_record(tape, REC_USED, object, (uint64_t)in->number);
    }
    return PyTuple_Check(object) || PyUnicode_Check(object) ||
           add_record(tape, REC_CHECK, object, (uint64_t)(uintptr_t)in);
}

/* Adds what the verdict or value of one instruction, which has just passed, rests on. False: can't be
 * recorded. */
static bool record_instr(Tape *tape, Instr *in, Run *run) {
    PyObject *object = in->slot >= 0 ? run->slots[in->slot] : NULL;
    switch (in->op->replay) {
    case REPLAY_ROOT:
    case REPLAY_IDENTITY:
    case REPLAY_VALUE:
        return true;
    case REPLAY_DICT: {
        PyObject **field = _PyObject_GetDictPtr(object);
        return field != NULL && add_record(tape, REC_DICT, field, (uint64_t)(uintptr_t)run->slots[in->out]);
    }
    case REPLAY_LOOKUP:
        return record_parent(tape, in, object);
    case REPLAY_TYPE_OF:
        return is_fixed_type(run->slots[in->out]) ||
               add_record(tape, REC_TYPE, object, (uint64_t)(uintptr_t)run->slots[in->out]);
    case REPLAY_TYPE:
        return is_fixed_type(in->object) ||
               add_record(tape, REC_TYPE, object, (uint64_t)(uintptr_t)in->object);
    case REPLAY_LENGTH:
        return record_length(tape, in, object);
    case REPLAY_TENSOR:
        return add_record(tape, REC_TENSOR, object, (uint64_t)(uintptr_t)in->tensor);
    case REPLAY_KEYS: /* the order of an OrderedDict is not covered by its version */
        return record_parent(tape, in, object) &&
               (!PyODict_Check(object) || add_record(tape, REC_CHECK, object, (uint64_t)(uintptr_t)in));
    case REPLAY_NEVER:
        break;
    }
    return false;
}

static void tape_record(GuardProgram *program, Tape *tape, Run *run) {
    tape->valid = false;
    tape->nrecords = 0;
    if (tape->failures >= FAILURES_BEFORE_REST && tape->failures < FAILURES_BEFORE_REST + REST) {
        tape->failures++;
        return;
    }
    tape->failures = tape->failures >= FAILURES_BEFORE_REST ? FAILURES_BEFORE_REST : tape->failures + 1;
    for (Py_ssize_t i = tape->first; i < tape->end; i++) {
        if (!record_instr(tape, &program->instrs[i], run)) {
            return;
        }
    }
    for (Py_ssize_t i = 0; i < tape->nexports; i++) {
        tape->exports[i] = run->slots[tape->export_slots[i]];
    }
    tape->root_value = tape->root >= 0 ? run->locals[tape->root] : NULL;
    tape->root_type = tape->root >= 0 ? Py_TYPE(tape->root_value) : NULL;
    tape->valid = true;
}

/* --- replaying
 * -------------------------------------------------------------------------------------------- */

static inline bool replay_record(const Record *record, Run *run) {
    switch (record->kind) {
    case REC_DICT:
        return *(void **)record->object == record->other;
    case REC_VERSION:
        return mc_dict_version(record->object) == record->number;
    case REC_LOOKUP:
        return PyDict_GetItemWithError(record->object, record->instr->object) == record[1].other;
    case REC_EXPECTED:
        return true;
    case REC_CLASS:
        return class_version(record->object) == record->number;
    case REC_TYPE:
        return (void *)Py_TYPE((PyObject *)record->object) == record->other;
    case REC_USED:
        return (uint64_t)((PyDictObject *)record->object)->ma_used == record->number;
    case REC_EMPTY:
        return (((PyDictObject *)record->object)->ma_used | ((PyDictObject *)record->other)->ma_used) == 0;
    case REC_TENSOR:
        return mc_tensor_matches(record->tensor, record->object);
    case REC_CHECK:
        run->slots[record->instr->slot] = record->object;
        return record->instr->op->check(record->instr, run);
    }
    return false;
}

static bool same_root(const Tape *tape, const Run *run) {
    return tape->root < 0 || (tape->root < run->nlocals && run->locals[tape->root] == tape->root_value &&
                              Py_TYPE(run->locals[tape->root]) == tape->root_type);
}

static bool tape_replay(Tape *tape, Run *run) {
    if (!tape->valid || !same_root(tape, run)) {
        return false;
    }
    const Record *end = tape->records + tape->nrecords;
    for (const Record *record = tape->records; record < end; record++) {
        if (!replay_record(record, run)) {
            return false;
        }
    }
    for (Py_ssize_t i = 0; i < tape->nexports; i++) {
        PyObject *value = tape->exports[i];
        run->slots[tape->export_slots[i]] = value;
        if (tape->export_keep) {
            run->owned[run->owned_count++] = Py_NewRef(value);
        }
    }
    tape->failures = 0;
    return true;
}

/* Replays the tape, or runs and records its instructions. Returns the index of the instruction that failed,
 * or tape->end. */
Py_ssize_t mc_tape_run(GuardProgram *program, Tape *tape, Run *run) {
    if (tape_replay(tape, run)) {
        return tape->end;
    }
    PyErr_Clear();
    Py_ssize_t done = mc_guard_steps(program, tape->first, tape->end, run);
    if (done == tape->end) {
        tape_record(program, tape, run);
    }
    return done;
}

/* --- building
 * --------------------------------------------------------------------------------------------- */

#define NO_TAPE (-1)

/* May this instruction be on a tape, given that what it looks at is? What equals an immutable value goes on
 * doing so. */
static bool tapeable(const Instr *in, bool pure) {
    return pure && in->op->replay != REPLAY_NEVER && in->op->replay != REPLAY_ROOT &&
           (in->op->replay != REPLAY_VALUE || mc_equality_is_pure(in->object));
}

/* For each instruction the root of its tape: a parameter's index, `nothing` for constants, or NO_TAPE. A
 * root whose only use is by loose instructions has no tape. */
static void find_roots(GuardProgram *self, int *root, const int *maker, const bool *impure, int nothing) {
    for (int i = 0; i < self->count; i++) {
        Instr *in = &self->instrs[i];
        int parent = in->slot >= 0 ? maker[in->slot] : -1;
        root[i] = NO_TAPE;
        if (in->op->replay == REPLAY_ROOT) {
            root[i] = in->object != NULL ? nothing : (int)in->number;
        }
        else if (parent >= 0 && root[parent] != NO_TAPE && tapeable(in, !impure[i])) {
            bool direct =
                self->instrs[parent].op->replay == REPLAY_ROOT && self->instrs[parent].object == NULL;
            /* a parameter's own value differs from call to call: only what hangs from its dict is worth a
             * tape */
            root[i] = direct && in->op->replay != REPLAY_DICT ? NO_TAPE : root[parent];
        }
    }
}

/* Sorts the instructions into tapes (by root, then order) and, last, the loose ones. */
static bool sort_instrs(GuardProgram *self, int *root, const int *maker, int nothing) {
    Instr *sorted = PyMem_Calloc((size_t)self->count + 1, sizeof(Instr));
    self->tapes = PyMem_Calloc((size_t)nothing + 2, sizeof(Tape));
    if (sorted == NULL || self->tapes == NULL) {
        PyMem_Free(sorted);
        return false;
    }
    bool *used = PyMem_Calloc((size_t)nothing + 2, sizeof(bool));
    for (int i = 0; used != NULL && i < self->count; i++) {
        used[root[i] + 1] |= root[i] != NO_TAPE && self->instrs[i].op->replay != REPLAY_ROOT;
    }
    Py_ssize_t at = 0;
    for (int r = 0; used != NULL && r <= nothing; r++) {
        if (!used[r + 1]) {
            continue;
        }
        Tape *tape = &self->tapes[self->ntapes++];
        *tape = (Tape){.root = r == nothing ? -1 : r, .first = at};
        for (int i = 0; i < self->count; i++) {
            if (root[i] == r) {
                sorted[at++] = self->instrs[i];
            }
        }
        tape->end = at;
    }
    for (int i = 0; used != NULL && i < self->count; i++) {
        if (root[i] == NO_TAPE || !used[root[i] + 1]) {
            sorted[at++] = self->instrs[i];
        }
    }
    if (used == NULL) {
        PyMem_Free(sorted);
        return false;
    }
    PyMem_Free(used);
    PyMem_Free(self->instrs);
    self->instrs = sorted;
    return true;
}

static void mark_first_uses(GuardProgram *self, Tape *tape, bool *seen) {
    for (Py_ssize_t i = tape->first; i < tape->end; i++) {
        Instr *in = &self->instrs[i];
        if (in->op->replay == REPLAY_LOOKUP || in->op->replay == REPLAY_KEYS) {
            in->first_use = !seen[in->slot];
            seen[in->slot] = true;
        }
    }
}

static void mark_outside_uses(GuardProgram *self, const int *tape_of_slot, Py_ssize_t i, int tape,
                              bool *outside) {
    Instr *in = &self->instrs[i];
    int slots[2] = {in->slot, in->op->arg == ARG_SLOT_SLOT ? (int)in->number : -1};
    for (int k = 0; k < 2; k++) {
        if (slots[k] >= 0 && tape_of_slot[slots[k]] != tape) {
            outside[slots[k]] = true;
        }
    }
    for (Py_ssize_t k = 0; mc_has_group(in) && k < in->group->size; k++) {
        outside[in->group->members[k].slot] = true;
    }
}

static bool make_exports(GuardProgram *self, Tape *tape, const bool *outside, bool keep) {
    for (Py_ssize_t i = tape->first; i < tape->end; i++) {
        Instr *in = &self->instrs[i];
        in->exported = in->out >= 0 && outside[in->out];
        tape->nexports += in->exported;
    }
    tape->export_keep = keep;
    tape->exports = PyMem_Calloc((size_t)tape->nexports + 1, sizeof(PyObject *));
    tape->export_slots = PyMem_Calloc((size_t)tape->nexports + 1, sizeof(int));
    Py_ssize_t count = 0;
    for (Py_ssize_t i = tape->first; tape->export_slots != NULL && i < tape->end; i++) {
        if (self->instrs[i].exported) {
            tape->export_slots[count++] = self->instrs[i].out;
        }
    }
    return tape->exports != NULL && tape->export_slots != NULL;
}

static bool finish_tapes(GuardProgram *self, bool any_impure) {
    int *tape_of_slot = PyMem_Malloc(((size_t)self->nslots + 1) * sizeof(int));
    bool *flags = PyMem_Calloc(2 * ((size_t)self->nslots + 1), sizeof(bool));
    bool *outside = flags ? flags + self->nslots + 1 : NULL, fine = tape_of_slot != NULL && flags != NULL;
    for (Py_ssize_t i = 0; fine && i < self->nslots; i++) {
        tape_of_slot[i] = NO_TAPE;
    }
    for (int t = 0; fine && t < self->ntapes; t++) {
        mark_first_uses(self, &self->tapes[t], flags);
        for (Py_ssize_t i = self->tapes[t].first; i < self->tapes[t].end; i++) {
            if (self->instrs[i].out >= 0) {
                tape_of_slot[self->instrs[i].out] = t;
            }
        }
    }
    Py_ssize_t loose = self->ntapes ? self->tapes[self->ntapes - 1].end : 0;
    for (Py_ssize_t i = loose; fine && i < self->count; i++) {
        mark_outside_uses(self, tape_of_slot, i, NO_TAPE, outside);
    }
    for (Py_ssize_t i = 0; fine && i < self->nfetch; i++) {
        outside[self->fetch[i]] = true;
    }
    for (int t = 0; fine && t < self->ntapes; t++) {
        fine = make_exports(self, &self->tapes[t], outside, any_impure);
    }
    PyMem_Free(tape_of_slot);
    PyMem_Free(flags);
    return fine;
}

/* Puts what can be on tapes on tapes. `impure`: per instruction, may it run Python code? */
bool mc_tapes_build(GuardProgram *self, const bool *impure) {
    int *root = PyMem_Malloc(((size_t)self->count + 1) * sizeof(int));
    int *maker = PyMem_Malloc(((size_t)self->nslots + 1) * sizeof(int));
    int nothing = 0;
    bool fine = root != NULL && maker != NULL, any_impure = false;
    for (int i = 0; fine && i < self->count; i++) {
        Instr *in = &self->instrs[i];
        if (in->out >= 0) {
            maker[in->out] = i;
        }
        if (in->op->replay == REPLAY_ROOT && in->object == NULL && in->number >= nothing) {
            nothing = (int)in->number + 1;
        }
        any_impure |= impure[i];
    }
    if (fine) {
        find_roots(self, root, maker, impure, nothing);
        fine = sort_instrs(self, root, maker, nothing) && finish_tapes(self, any_impure);
    }
    PyMem_Free(root);
    PyMem_Free(maker);
    return fine;
}

void mc_tapes_free(GuardProgram *self) {
    for (int t = 0; t < self->ntapes; t++) {
        PyMem_Free(self->tapes[t].records);
        PyMem_Free(self->tapes[t].exports);
        PyMem_Free(self->tapes[t].export_slots);
    }
    PyMem_Free(self->tapes);
    self->tapes = NULL;
    self->ntapes = 0;
}
