/* GuardProgram: from a call's arguments, in one pass, the verdict "this entry may run" and the objects its
 * program needs.
 *
 * Takes a list of instructions, tuples whose first item is an opcode's name; a source is named by its place
 * in that list, so that each is evaluated once however many guards look at it. Sources give an object,
 * checks compare one. A failed check, a missing attribute, an error raised by user code on the way: all are
 * a miss, never an exception. The opcodes are the rows of `rows` below.
 *
 * References. A value found in a frame, a tuple or a dict is borrowed while the pass runs; that is safe as
 * long as no Python code runs between finding and using it, so instructions that may run some (rows marked
 * IMPURE) make every slot that lives across them own its value.
 *
 * Caches. A dict's version tag is unique among all states of all dicts, so "same dict, same tag" means that
 * a lookup gives what it gave.
 */
#include "_guards.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

/* --- strict equality -------------------------------------------------------------------------- */

static bool strict_equal(PyObject *found, PyObject *expected);

static bool items_equal(PyObject *found, PyObject *expected) {
    Py_ssize_t size = PyTuple_GET_SIZE(expected);
    if (PyTuple_GET_SIZE(found) != size) {
        return false;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        if (!strict_equal(PyTuple_GET_ITEM(found, i), PyTuple_GET_ITEM(expected, i))) {
            return false;
        }
    }
    return true;
}

/* Same type and same value. Floats by their bits: NaN equals itself, 0.0 is not -0.0. Clears errors of a
 * user's __eq__. */
static bool strict_equal(PyObject *found, PyObject *expected) {
    if (found == expected) {
        return true;
    }
    PyTypeObject *type = Py_TYPE(expected);
    if (Py_TYPE(found) != type || type == &PyBool_Type || expected == Py_None) {
        return false;
    }
    if (type == &PyFloat_Type) {
        double a = PyFloat_AS_DOUBLE(found), b = PyFloat_AS_DOUBLE(expected);
        return memcmp(&a, &b, sizeof a) == 0;
    }
    if (type == &PyComplex_Type) {
        Py_complex a = ((PyComplexObject *)found)->cval, b = ((PyComplexObject *)expected)->cval;
        return memcmp(&a, &b, sizeof a) == 0;
    }
    if (PyTuple_Check(expected)) {
        return items_equal(found, expected);
    }
    if (type == &PySlice_Type) {
        PySliceObject *a = (PySliceObject *)found, *b = (PySliceObject *)expected;
        return strict_equal(a->start, b->start) && strict_equal(a->stop, b->stop) &&
               strict_equal(a->step, b->step);
    }
    int equal = PyObject_RichCompareBool(found, expected, Py_EQ);
    if (equal < 0) {
        PyErr_Clear();
    }
    return equal == 1;
}

/* Can comparing with this value run code of the user? */
bool mc_equality_is_pure(PyObject *value) {
    if (PyTuple_CheckExact(value)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); i++) {
            if (!mc_equality_is_pure(PyTuple_GET_ITEM(value, i))) {
                return false;
            }
        }
        return true;
    }
    return value == Py_None || value == Py_Ellipsis || PyBool_Check(value) || PyLong_CheckExact(value) ||
           PyFloat_CheckExact(value) || PyComplex_CheckExact(value) || PyUnicode_CheckExact(value) ||
           PyBytes_CheckExact(value) || PyType_CheckExact(value) || PyFunction_Check(value) ||
           PyCFunction_Check(value) || PyModule_Check(value);
}

/* --- sources ---------------------------------------------------------------------------------- */

/* A source returns its value, NULL for a miss; *owned tells whether the reference is new. Errors are
 * cleared by the caller. */

static PyObject *get_local(Instr *in, Run *run, bool *owned) {
    return (size_t)in->number < (size_t)run->nlocals ? run->locals[in->number] : NULL;
}

static PyObject *get_const(Instr *in, Run *run, bool *owned) { return in->object; }

static PyObject *get_function(Instr *in, Run *run, bool *owned) { return run->function; }

/* The version tag, unique among all states of all dicts; 0: unknown. In 3.13 an instance's dict can share
 * the instance's inline values, and then a store to an attribute does not change the dict's tag. */
uint64_t mc_dict_version(PyObject *object) {
    PyDictObject *dict = (PyDictObject *)object;
#if PY_VERSION_HEX >= 0x030D0000
    if (dict->ma_values != NULL) {
        return 0;
    }
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored                                                                             \
    "-Wdeprecated-declarations" /* from 3.12 on, without a replacement up to 3.13 */
    return dict->ma_version_tag;
#pragma GCC diagnostic pop
}

/* The raw lookup, whatever __getitem__ a subclass has; exact strings as keys, so no user code runs when the
 * dict's keys are strings. */
static PyObject *dict_lookup(Instr *in, PyObject *dict, PyObject *key) {
    uint64_t version = mc_dict_version(dict);
    if (in->cached_parent == dict && in->cached_version == version && version != 0) {
        return in->cached_value;
    }
    PyObject *value = PyDict_GetItemWithError(dict, key);
    if (mc_dict_version(dict) == version) {
        in->cached_parent = dict;
        in->cached_version = version;
        in->cached_value = value;
    }
    return value;
}

static PyObject *get_global(Instr *in, Run *run, bool *owned) {
    return dict_lookup(in, PyFunction_GET_GLOBALS(run->function), in->object);
}

static PyObject *get_builtin(Instr *in, Run *run, bool *owned) {
    PyObject *builtins = ((PyFunctionObject *)run->function)->func_builtins;
    return builtins && PyDict_Check(builtins) ? dict_lookup(in, builtins, in->object) : NULL;
}

static PyObject *get_cell(Instr *in, Run *run, bool *owned) {
    PyObject *closure = PyFunction_GET_CLOSURE(run->function);
    if (closure == NULL || (size_t)in->number >= (size_t)PyTuple_GET_SIZE(closure)) {
        return NULL;
    }
    return PyCell_GET(PyTuple_GET_ITEM(closure, in->number));
}

static PyObject *get_contents(Instr *in, Run *run, bool *owned) {
    PyObject *cell = run->slots[in->slot];
    return PyCell_Check(cell) ? PyCell_GET(cell) : NULL;
}

static PyObject *get_attr(Instr *in, Run *run, bool *owned) {
    *owned = true;
    return PyObject_GetAttr(run->slots[in->slot], in->object);
}

/* The instance's dict, made if the instance keeps its attributes without one; NULL if it can't have one.
 * Borrowed from the instance. */
static PyObject *instance_dict(PyObject *object) {
    PyObject **pointer = _PyObject_GetDictPtr(object);
    if (pointer == NULL) {
        return NULL;
    }
    if (*pointer == NULL) {
        PyObject *made = PyObject_GenericGetDict(object, NULL);
        Py_XDECREF(made); /* the instance holds it */
    }
    return *pointer;
}

static PyObject *get_dict(Instr *in, Run *run, bool *owned) { return instance_dict(run->slots[in->slot]); }

static PyObject *get_type(Instr *in, Run *run, bool *owned) {
    return (PyObject *)Py_TYPE(run->slots[in->slot]);
}

static PyObject *get_type_attr(Instr *in, Run *run, bool *owned) {
    PyObject *type = run->slots[in->slot];
    return PyType_Check(type) ? _PyType_Lookup((PyTypeObject *)type, in->object) : NULL;
}

static PyObject *get_item(Instr *in, Run *run, bool *owned) {
    PyObject *parent = run->slots[in->slot];
    return PyDict_Check(parent) ? dict_lookup(in, parent, in->object) : NULL;
}

static PyObject *get_getitem(Instr *in, Run *run, bool *owned) {
    *owned = true;
    return PyObject_GetItem(run->slots[in->slot], in->object);
}

static PyObject *get_index(Instr *in, Run *run, bool *owned) {
    PyObject *parent = run->slots[in->slot];
    if (!PyTuple_Check(parent) && !PyList_Check(parent)) {
        return NULL;
    }
    bool inside = in->number >= 0 && in->number < Py_SIZE(parent);
    return inside ? PySequence_Fast_GET_ITEM(parent, in->number) : NULL;
}

static PyObject *get_call(Instr *in, Run *run, bool *owned) {
    *owned = true;
    return PyObject_CallOneArg(in->object, run->slots[in->slot]);
}

#define MOST_ARGUMENTS 8

/* A function of numbers, whose types are guarded: no code of the user runs. */
static PyObject *get_apply(Instr *in, Run *run, bool *owned) {
    PyObject *args[MOST_ARGUMENTS];
    if (in->group->size > MOST_ARGUMENTS) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < in->group->size; i++) {
        args[i] = run->slots[in->group->members[i].slot];
    }
    *owned = true;
    return PyObject_Vectorcall(in->object, args, (size_t)in->group->size, NULL);
}

static PyObject *get_extent(Instr *in, Run *run, bool *owned) {
    int64_t value;
    if (!mc_tensor_extent(run->slots[in->slot], in->number, in->op->arg == ARG_STRIDE, &value)) {
        return NULL;
    }
    *owned = true;
    return PyLong_FromLongLong(value);
}

/* --- checks ----------------------------------------------------------------------------------- */

static bool check_id(Instr *in, Run *run) { return run->slots[in->slot] == in->object; }

static bool check_not_id(Instr *in, Run *run) { return run->slots[in->slot] != in->object; }

static bool check_type(Instr *in, Run *run) {
    return (PyObject *)Py_TYPE(run->slots[in->slot]) == in->object;
}

static bool check_equals(Instr *in, Run *run) { return strict_equal(run->slots[in->slot], in->object); }

/* The stored length, whatever __len__ a subclass has; -1 for what is not a builtin container. */
static Py_ssize_t raw_length(PyObject *object) {
    if (PyTuple_Check(object) || PyList_Check(object) || PyBytes_Check(object)) {
        return Py_SIZE(object);
    }
    if (PyDict_Check(object)) {
        return ((PyDictObject *)object)->ma_used;
    }
    if (PyAnySet_Check(object)) {
        return PySet_GET_SIZE(object);
    }
    return PyUnicode_Check(object) ? PyUnicode_GET_LENGTH(object) : -1;
}

static bool check_len(Instr *in, Run *run) { return raw_length(run->slots[in->slot]) == in->number; }

static bool odict_keys_equal(PyObject *odict, PyObject *keys) {
    PyObject *iterator = PyODict_Type.tp_iter(odict); /* not the subclass's: order as stored */
    bool equal = iterator != NULL;
    for (Py_ssize_t i = 0; equal && i < PyTuple_GET_SIZE(keys); i++) {
        PyObject *key = PyIter_Next(iterator);
        equal = key != NULL && strict_equal(key, PyTuple_GET_ITEM(keys, i));
        Py_XDECREF(key);
    }
    Py_XDECREF(iterator);
    return equal;
}

static bool check_keys(Instr *in, Run *run) {
    PyObject *dict = run->slots[in->slot], *key;
    if (!PyDict_Check(dict) || ((PyDictObject *)dict)->ma_used != PyTuple_GET_SIZE(in->object)) {
        return false;
    }
    if (PyODict_Check(dict)) { /* move_to_end changes the order, not the dict's version */
        return odict_keys_equal(dict, in->object);
    }
    uint64_t version = mc_dict_version(dict);
    if (in->cached_parent == dict && in->cached_version == version && version != 0) {
        return true;
    }
    Py_ssize_t position = 0, i = 0;
    while (i < PyTuple_GET_SIZE(in->object) && PyDict_Next(dict, &position, &key, NULL)) {
        if (!strict_equal(key, PyTuple_GET_ITEM(in->object, i++))) {
            return false;
        }
    }
    if (mc_dict_version(dict) == version) {
        in->cached_parent = dict;
        in->cached_version = version;
    }
    return true;
}

static bool check_not_present(Instr *in, Run *run) {
    PyObject *parent = run->slots[in->slot];
    if (PyDict_Check(parent)) {
        return dict_lookup(in, parent, in->object) == NULL && !PyErr_Occurred();
    }
    return PyType_Check(parent) && _PyType_Lookup((PyTypeObject *)parent, in->object) == NULL;
}

static bool check_no_attr(Instr *in, Run *run) {
    PyObject *value = PyObject_GetAttr(run->slots[in->slot], in->object);
    Py_XDECREF(value);
    bool missing = value == NULL && PyErr_ExceptionMatches(PyExc_AttributeError);
    PyErr_Clear();
    return missing;
}

static bool check_truth(Instr *in, Run *run) { return PyObject_IsTrue(run->slots[in->slot]) == in->number; }

static bool check_range(Instr *in, Run *run) {
    PyObject *value = run->slots[in->slot];
    if (!PyLong_CheckExact(value)) {
        return false;
    }
    int overflow = 0;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow && number >= in->number && number <= in->limit;
}

static bool check_same(Instr *in, Run *run) { return run->slots[in->slot] == run->slots[in->number]; }

static bool check_tensor(Instr *in, Run *run) {
    return mc_tensor_matches(in->tensor, run->slots[in->slot]);
}

static bool check_shares(Instr *in, Run *run) {
    void *storage = mc_tensor_storage(run->slots[in->slot]);
    return storage != NULL && storage == mc_tensor_storage(run->slots[in->number]);
}

static void *group_key(Instr *in, PyObject *object) {
    return in->op->arg == ARG_TENSORS ? mc_tensor_storage(object) : (void *)object;
}

/* A float that a float32 can hold, infinities and NaN included. */
static bool check_single(Instr *in, Run *run) {
    PyObject *value = run->slots[in->slot];
    double number = PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : 0;
    return PyFloat_CheckExact(value) && !(isfinite(number) && fabs(number) > FLT_MAX);
}

/* All keys different (storages of tensors, or the objects themselves). The keys that passed last are kept:
 * seeing the very same ones again needs no comparing. */
static bool check_distinct(Instr *in, Run *run) {
    Group *group = in->group;
    Py_ssize_t first = 0;
    while (first < group->size &&
           group_key(in, run->slots[group->members[first].slot]) == group->members[first].key) {
        first++;
    }
    if (first == group->size) {
        return true;
    }
    for (Py_ssize_t i = 0; i < group->size; i++) {
        group->members[i].key = group_key(in, run->slots[group->members[i].slot]);
    }
    for (Py_ssize_t i = 0; i < group->size; i++) {
        for (Py_ssize_t j = 0; j < i && group->members[i].key != NULL; j++) {
            if (group->members[i].key == group->members[j].key) {
                group->members[0].key =
                    group; /* no key of anything: a failure must not be taken for a success */
                return false;
            }
        }
    }
    return true;
}

static bool check_grad_mode(Instr *in, Run *run) { return mc_grad_mode() == in->number; }

static bool check_ambient(Instr *in, Run *run) {
    Ambient now;
    return mc_ambient(&now) && memcmp(&now, in->ambient, sizeof now) == 0;
}

static bool check_predicate(Instr *in, Run *run) {
    PyObject *value = PyObject_CallNoArgs(in->object);
    bool equal = value != NULL && strict_equal(value, in->expected);
    Py_XDECREF(value);
    return equal;
}

/* --- the opcodes ------------------------------------------------------------------------------ */

/* clang-format off */
#define SOURCE(name, arg, purity, get, replay) {name, ARG_##arg, purity, get, NULL, REPLAY_##replay},
#define CHECK(name, arg, purity, check, replay) {name, ARG_##arg, purity, NULL, check, REPLAY_##replay},
const Row mc_guard_rows[] = {
    /* name, operands, may it run user code, function, what a replay of it rests on */
    SOURCE("LOCAL", NUMBER, PURE, get_local, ROOT)                  /* parameter i (order: co_varnames) */
    SOURCE("CONST", OBJECT, PURE, get_const, ROOT)                  /* the object itself */
    SOURCE("FUNC", NONE, PURE, get_function, NEVER)                 /* the function that runs */
    SOURCE("GLOBAL", NAME, PURE, get_global, NEVER)                 /* its global, not its builtin */
    SOURCE("BUILTIN", NAME, PURE, get_builtin, NEVER)               /* its builtin */
    SOURCE("CELL", NUMBER, PURE, get_cell, NEVER)                   /* contents of its closure's cell i */
    SOURCE("CONTENTS", SLOT, PURE, get_contents, NEVER)             /* contents of a cell object */
    SOURCE("ATTR", SLOT_NAME, IMPURE, get_attr, NEVER)              /* getattr */
    SOURCE("DICT", SLOT, PURE, get_dict, DICT)                      /* the instance's dict */
    SOURCE("DICT_ATTR", SLOT_NAME, PURE, get_dict, NEVER)           /* built as DICT and ITEM */
    SOURCE("TYPE_OF", SLOT, PURE, get_type, TYPE_OF)                /* the object's type */
    SOURCE("TYPE_ATTR", SLOT_NAME, PURE, get_type_attr, LOOKUP)     /* raw lookup in a class's MRO */
    SOURCE("ITEM", SLOT_KEY, KEY, get_item, LOOKUP)                 /* of a dict or subclass: raw lookup */
    SOURCE("INDEX", SLOT_NUMBER, PURE, get_index, NEVER)            /* of a list or tuple: raw; i >= 0 */
    SOURCE("GETITEM", SLOT_KEY, IMPURE, get_getitem, NEVER)         /* operator.getitem */
    SOURCE("CALL", OBJECT_SLOT, IMPURE, get_call, NEVER)            /* fn(value) */
    SOURCE("APPLY", OBJECT_SLOTS, PURE, get_apply, NEVER)           /* fn(numbers) */
    SOURCE("SIZE", SLOT_NUMBER, PURE, get_extent, NEVER)            /* tensor.size(dim) */
    SOURCE("STRIDE", STRIDE, PURE, get_extent, NEVER)               /* tensor.stride(dim) */
    CHECK("ID", SLOT_OBJECT, PURE, check_id, IDENTITY)              /* is */
    CHECK("NOT_ID", SLOT_OBJECT, PURE, check_not_id, IDENTITY)      /* is not */
    CHECK("TYPE", SLOT_OBJECT, PURE, check_type, TYPE)              /* type(value) is */
    CHECK("EQUALS", SLOT_OBJECT, VALUE, check_equals, VALUE)        /* same type, same value */
    CHECK("LEN", SLOT_NUMBER, PURE, check_len, LENGTH)              /* stored length of a builtin container */
    CHECK("KEYS", SLOT_TUPLE, VALUE, check_keys, KEYS)              /* a dict: these keys in this order */
    CHECK("NOT_PRESENT", SLOT_KEY, KEY, check_not_present, LOOKUP)  /* key in a dict, name in an MRO */
    CHECK("NO_ATTR", SLOT_NAME, IMPURE, check_no_attr, NEVER)       /* getattr raises AttributeError */
    CHECK("TRUTH", SLOT_NUMBER, IMPURE, check_truth, NEVER)         /* bool(value) */
    CHECK("RANGE", SLOT_RANGE, PURE, check_range, IDENTITY)         /* an int with lo <= value <= hi */
    CHECK("SINGLE", SLOT, PURE, check_single, IDENTITY)             /* a float in the range of float32 */
    CHECK("SAME", SLOT_SLOT, PURE, check_same, NEVER)               /* two sources give one object */
    CHECK("DISTINCT", SLOTS, PURE, check_distinct, NEVER)           /* pairwise different objects */
    CHECK("TENSOR", TENSOR, TENSOR, check_tensor, TENSOR)           /* as the example was */
    CHECK("SHARES", SLOT_SLOT, TENSOR, check_shares, NEVER)         /* two tensors on one storage */
    CHECK("NO_ALIAS", TENSORS, TENSOR, check_distinct, NEVER)       /* pairwise different storages */
    CHECK("GRAD_MODE", NUMBER, PURE, check_grad_mode, NEVER)        /* torch.is_grad_enabled() */
    CHECK("AMBIENT", AMBIENT, PURE, check_ambient, NEVER)           /* torch's thread state as it was */
    CHECK("PREDICATE", OBJECT_VALUE, IMPURE, check_predicate, NEVER)/* fn() equals */
    {NULL, 0, 0, NULL, NULL, 0},
};
/* clang-format on */

/* --- running ---------------------------------------------------------------------------------- */

static bool step(Instr *in, Run *run) {
    if (in->op->check != NULL) {
        return in->op->check(in, run);
    }
    bool owned = false;
    PyObject *value = in->op->get(in, run, &owned);
    if (value == NULL) {
        return false;
    }
    if (!owned && in->keep) {
        Py_INCREF(value);
        owned = true;
    }
    run->slots[in->out] = value;
    if (owned) {
        run->owned[run->owned_count++] = value;
    }
    return true;
}

Py_ssize_t mc_guard_steps(GuardProgram *program, Py_ssize_t first, Py_ssize_t end, Run *run) {
    for (; first < end; first++) {
        if (!step(&program->instrs[first], run)) {
            PyErr_Clear();
            break;
        }
    }
    return first;
}

/* Runs the tapes, then the loose instructions; returns the index of the one that failed, or their count.
 * Leaves in `run->slots` what the failed one looked at, or all that is fetched. */
static Py_ssize_t run_all(GuardProgram *program, Run *run) {
    Py_ssize_t loose = 0;
    for (int t = 0; t < program->ntapes; t++) {
        Py_ssize_t done = mc_tape_run(program, &program->tapes[t], run);
        if (done < program->tapes[t].end) {
            return done;
        }
        loose = done;
    }
    return mc_guard_steps(program, loose, program->count, run);
}

#define STACK_SLOTS 256

/* Room for a run: on the C stack if it fits, else on the heap. */
#define RUN_BEGIN(run, program, fn, values, n)                                                             \
    PyObject *stack_room[2 * STACK_SLOTS];                                                                 \
    PyObject **room = stack_room;                                                                          \
    if ((program)->nslots > STACK_SLOTS) {                                                                 \
        room = PyMem_Malloc(2 * (size_t)(program)->nslots * sizeof(PyObject *));                           \
    }                                                                                                      \
    Run run = {(fn), (values), (n), room, room ? room + (program)->nslots : NULL, 0};

#define RUN_END(run)                                                                                       \
    while (run.owned_count > 0) {                                                                          \
        Py_DECREF(run.owned[--run.owned_count]);                                                           \
    }                                                                                                      \
    if (room != stack_room) {                                                                              \
        PyMem_Free(room);                                                                                  \
    }

Py_ssize_t mc_guard_fetch_count(GuardProgram *program) { return program->nfetch; }

Py_ssize_t mc_guard_run(GuardProgram *program, PyObject *function, PyObject **locals, Py_ssize_t nlocals,
                        PyObject **fetched, Py_ssize_t *failed) {
    RUN_BEGIN(run, program, function, locals, nlocals)
    if (room == NULL) {
        *failed = 0;
        return -1;
    }
    Py_ssize_t done = run_all(program, &run), result = -1;
    if (done == program->count) {
        result = program->nfetch;
        for (Py_ssize_t i = 0; i < result; i++) {
            fetched[i] = Py_NewRef(run.slots[program->fetch[i]]);
        }
    }
    *failed = done < program->count ? program->instrs[done].index : -1;
    RUN_END(run)
    return result;
}

/* --- Python's view ---------------------------------------------------------------------------- */

static PyObject *describe_miss(Instr *in, Run *run) {
    if (in->op->arg == ARG_TENSOR) {
        return mc_tensor_mismatch(in->tensor, run->slots[in->slot]);
    }
    if (in->op->arg == ARG_AMBIENT) {
        Ambient now;
        return mc_ambient(&now) ? mc_ambient_mismatch(in->ambient, &now) : NULL;
    }
    return PyUnicode_FromString("");
}

PyDoc_STRVAR(check_doc, "check(function, locals) -> None | (index, found, detail)\n\nRun the guards over a "
                        "function and the list of its bound "
                        "parameters. None: all hold. Else the index of the\ninstruction that failed, the "
                        "object it looked at (`NULL` if a source found nothing), and "
                        "for tensors and ambient\nstate which property differs.");

static PyObject *program_check(GuardProgram *self, PyObject *args) {
    PyObject *function, *locals;
    if (!PyArg_ParseTuple(args, "O!O!", &PyFunction_Type, &function, &PyList_Type, &locals)) {
        return NULL;
    }
    PyObject *values = PyList_AsTuple(locals);
    if (values == NULL) {
        return NULL;
    }
    RUN_BEGIN(run, self, function, ((PyTupleObject *)values)->ob_item, PyTuple_GET_SIZE(values))
    PyObject *result = NULL;
    Py_ssize_t done = room ? run_all(self, &run) : 0;
    if (room == NULL) {
        PyErr_NoMemory();
    }
    else if (done == self->count) {
        result = Py_NewRef(Py_None);
    }
    else {
        Instr *in = &self->instrs[done];
        PyObject *found = in->op->check && in->slot >= 0 ? run.slots[in->slot] : mc_null;
        PyObject *detail = describe_miss(in, &run);
        result = detail ? Py_BuildValue("nON", in->index, found, detail) : NULL;
    }
    RUN_END(run)
    Py_DECREF(values);
    return result;
}

PyDoc_STRVAR(
    fetch_doc,
    "fetch(function, locals) -> tuple | None\n\nWhat the program would get, or None if a guard fails.");

static PyObject *program_fetch(GuardProgram *self, PyObject *args) {
    PyObject *function, *locals;
    if (!PyArg_ParseTuple(args, "O!O!", &PyFunction_Type, &function, &PyList_Type, &locals)) {
        return NULL;
    }
    PyObject *values = PyList_AsTuple(locals), *result = values ? PyTuple_New(self->nfetch) : NULL;
    if (result != NULL) {
        Py_ssize_t failed;
        PyObject **items = ((PyTupleObject *)values)->ob_item;
        if (mc_guard_run(self, function, items, PyTuple_GET_SIZE(values),
                         ((PyTupleObject *)result)->ob_item, &failed) < 0) {
            Py_SETREF(result, Py_NewRef(Py_None));
        }
    }
    Py_XDECREF(values);
    return result;
}

static PyMethodDef program_methods[] = {
    {"check", (PyCFunction)program_check, METH_VARARGS, check_doc},
    {"fetch", (PyCFunction)program_fetch, METH_VARARGS, fetch_doc},
    {NULL, NULL, 0, NULL},
};

static Py_ssize_t program_length(PyObject *self) { return ((GuardProgram *)self)->count; }

static PySequenceMethods program_sequence = {.sq_length = program_length};

static int program_traverse(GuardProgram *self, visitproc visit, void *arg) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_VISIT(self->instrs[i].object);
        if (self->instrs[i].op->arg == ARG_OBJECT_VALUE) {
            Py_VISIT(self->instrs[i].expected);
        }
    }
    return 0;
}

static int program_clear(GuardProgram *self) {
    Py_ssize_t count = self->count;
    self->count = 0; /* first: dropping a reference may run code that runs us */
    mc_tapes_free(self);
    for (Py_ssize_t i = 0; i < count; i++) {
        mc_instr_free(&self->instrs[i]);
    }
    self->nfetch = 0;
    return 0;
}

static void program_dealloc(GuardProgram *self) {
    PyObject_GC_UnTrack(self);
    program_clear(self);
    PyMem_Free(self->instrs);
    PyMem_Free(self->fetch);
    Py_TYPE(self)->tp_free(self);
}

PyDoc_STRVAR(program_doc, "GuardProgram(instructions, fetch=())\n\nNative guards. `instructions`: list of "
                          "tuples (opcode name, operands ...); a "
                          "source is named by its index in that\nlist. `fetch`: indices of the sources "
                          "whose values are the program's arguments.\nRaises ValueError for an "
                          "unknown opcode or a wrong operand.");

PyTypeObject GuardProgram_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "minicompile._native.GuardProgram",
    .tp_basicsize = sizeof(GuardProgram),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = program_doc,
    .tp_new = mc_program_new,
    .tp_dealloc = (destructor)program_dealloc,
    .tp_traverse = (traverseproc)program_traverse,
    .tp_clear = (inquiry)program_clear,
    .tp_methods = program_methods,
    .tp_as_sequence = &program_sequence,
};
