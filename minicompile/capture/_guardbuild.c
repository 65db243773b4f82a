/* Building guard programs: from a Python list of tuples to the instructions that _guards.c runs.
 *
 * Each opcode's row says which operands follow its name; a source is named by its index in the list. Errors
 * in the list are ValueErrors naming the instruction.
 */
#include "_guards.h"

#include <string.h>

static PyObject *bad(Py_ssize_t index, const char *name, const char *what) {
    PyErr_Format(PyExc_ValueError, "guard instruction %zd (%s): %s", index, name, what);
    return NULL;
}

static const Row *row_named(const char *name) {
    for (const Row *row = mc_guard_rows; row->name != NULL; row++) {
        if (strcmp(row->name, name) == 0) {
            return row;
        }
    }
    return NULL;
}

static const Row *find_row(PyObject *name) {
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    return text != NULL ? row_named(text) : NULL;
}

/* --- operands --------------------------------------------------------------------------------- */

/* What a builder sees: the tuple, and for each index of the list the slot that it fills (-1: a check). */
typedef struct {
    PyObject *tuple;
    Py_ssize_t index;
    const Row *row;
    const int *slot_of;
} Operands;

static bool operand_slot(Operands *from, PyObject *number, int *slot) {
    Py_ssize_t source = PyLong_Check(number) ? PyLong_AsSsize_t(number) : -1;
    if (source < 0 || source >= from->index || from->slot_of[source] < 0) {
        PyErr_Clear();
        return bad(from->index, from->row->name, "an operand does not name an earlier source") != NULL;
    }
    *slot = from->slot_of[source];
    return true;
}

static bool operand_number(Operands *from, PyObject *number, int64_t *value) {
    *value = PyLong_Check(number) ? PyLong_AsLongLong(number) : 0;
    if (!PyLong_Check(number) || PyErr_Occurred()) {
        PyErr_Clear();
        return bad(from->index, from->row->name, "an operand is not an int of 64 bits") != NULL;
    }
    return true;
}

static bool operand_name(Operands *from, PyObject *name, PyObject **object) {
    if (!PyUnicode_CheckExact(name)) {
        return bad(from->index, from->row->name, "a name must be a str") != NULL;
    }
    *object = Py_NewRef(name);
    PyUnicode_InternInPlace(object);
    return true;
}

static bool operand_group(Operands *from, PyObject *sources, Group **group) {
    PyObject *tuple = PySequence_Tuple(sources);
    if (tuple == NULL) {
        return false;
    }
    Py_ssize_t size = PyTuple_GET_SIZE(tuple);
    Group *made = PyMem_Calloc(1, sizeof(Group) + (size_t)size * sizeof(made->members[0]));
    bool fine = made != NULL;
    for (Py_ssize_t i = 0; fine && i < size; i++) {
        fine = operand_slot(from, PyTuple_GET_ITEM(tuple, i), &made->members[i].slot);
        made->members[i].key = made; /* the key of nothing */
    }
    Py_DECREF(tuple);
    if (!fine) {
        PyMem_Free(made);
        return false;
    }
    made->size = size;
    *group = made;
    return true;
}

static bool operand_tensor(Operands *from, Instr *in) {
    PyObject *example = PyTuple_GET_ITEM(from->tuple, 2), *sizes = Py_None, *strides = Py_None;
    if (PyTuple_GET_SIZE(from->tuple) > 3) {
        sizes = PyTuple_GET_ITEM(from->tuple, 3);
    }
    if (PyTuple_GET_SIZE(from->tuple) > 4) {
        strides = PyTuple_GET_ITEM(from->tuple, 4);
    }
    in->tensor = mc_tensor_spec(example, sizes, strides);
    return in->tensor != NULL;
}

static bool operand_ambient(Instr *in) {
    in->ambient = PyMem_Calloc(1, sizeof(Ambient));
    return in->ambient != NULL && mc_ambient(in->ambient);
}

static bool operand_second_slot(Operands *from, Instr *in) {
    int second;
    if (!operand_slot(from, PyTuple_GET_ITEM(from->tuple, 2), &second)) {
        return false;
    }
    in->number = second;
    return true;
}

/* How many operands an opcode takes (TENSOR: at least). */
static Py_ssize_t operand_count(Arg arg) {
    switch (arg) {
    case ARG_NONE:
    case ARG_AMBIENT:
        return 0;
    case ARG_NUMBER:
    case ARG_OBJECT:
    case ARG_NAME:
    case ARG_SLOT:
    case ARG_SLOTS:
    case ARG_TENSORS:
        return 1;
    case ARG_SLOT_RANGE:
        return 3;
    default:
        return 2;
    }
}

static bool first_is_slot(Arg arg) {
    return arg >= ARG_SLOT && arg != ARG_SLOTS && arg != ARG_TENSORS && arg < ARG_OBJECT_SLOT;
}

static bool read_operands(Operands *from, Instr *in) {
    PyObject **operands = ((PyTupleObject *)from->tuple)->ob_item + 1;
    if (first_is_slot(in->op->arg) && !operand_slot(from, operands[0], &in->slot)) {
        return false;
    }
    switch (in->op->arg) {
    case ARG_NONE:
    case ARG_SLOT:
        return true;
    case ARG_NUMBER:
        return operand_number(from, operands[0], &in->number);
    case ARG_OBJECT:
        in->object = Py_NewRef(operands[0]);
        return true;
    case ARG_NAME:
        return operand_name(from, operands[0], &in->object);
    case ARG_SLOT_NAME:
        return operand_name(from, operands[1], &in->object);
    case ARG_SLOT_KEY:
        return PyUnicode_CheckExact(operands[1]) ? operand_name(from, operands[1], &in->object)
                                                 : (in->object = Py_NewRef(operands[1]), true);
    case ARG_SLOT_NUMBER:
    case ARG_STRIDE:
        return operand_number(from, operands[1], &in->number);
    case ARG_SLOT_OBJECT:
        in->object = Py_NewRef(operands[1]);
        return true;
    case ARG_SLOT_TUPLE:
        in->object = PySequence_Tuple(operands[1]);
        return in->object != NULL;
    case ARG_SLOT_RANGE:
        return operand_number(from, operands[1], &in->number) &&
               operand_number(from, operands[2], &in->limit);
    case ARG_SLOT_SLOT:
        return operand_second_slot(from, in);
    case ARG_SLOTS:
    case ARG_TENSORS:
        return operand_group(from, operands[0], &in->group);
    case ARG_TENSOR:
        return operand_tensor(from, in);
    case ARG_OBJECT_SLOT:
        in->object = Py_NewRef(operands[0]);
        return operand_slot(from, operands[1], &in->slot);
    case ARG_OBJECT_SLOTS:
        in->object = Py_NewRef(operands[0]);
        return operand_group(from, operands[1], &in->group);
    case ARG_OBJECT_VALUE:
        in->object = Py_NewRef(operands[0]);
        in->expected = Py_NewRef(operands[1]);
        return true;
    case ARG_AMBIENT:
        return operand_ambient(in);
    }
    return false;
}

static bool build_instr(Instr *in, Operands *from) {
    *in = (Instr){.op = NULL, .slot = -1, .out = -1, .index = (int)from->index};
    PyObject *tuple = from->tuple;
    from->row =
        PyTuple_Check(tuple) && PyTuple_GET_SIZE(tuple) > 0 ? find_row(PyTuple_GET_ITEM(tuple, 0)) : NULL;
    if (from->row == NULL) {
        return bad(from->index, "?", "not a tuple that begins with an opcode's name") != NULL;
    }
    Py_ssize_t extra = PyTuple_GET_SIZE(tuple) - 1 - operand_count(from->row->arg);
    if (extra < 0 || extra > (from->row->arg == ARG_TENSOR ? 2 : 0)) {
        return bad(from->index, from->row->name, "wrong number of operands") != NULL;
    }
    in->op = from->row;
    in->number = 0;
    if (in->op->arg == ARG_TENSOR) {
        in->tensor = NULL;
    }
    return read_operands(from, in);
}

void mc_instr_free(Instr *in) {
    Py_CLEAR(in->object);
    if (in->op == NULL) {
        return;
    }
    switch (in->op->arg) {
    case ARG_TENSOR:
        mc_tensor_spec_free(in->tensor);
        in->tensor = NULL;
        break;
    case ARG_AMBIENT:
        PyMem_Free(in->ambient);
        in->ambient = NULL;
        break;
    case ARG_SLOTS:
    case ARG_TENSORS:
    case ARG_OBJECT_SLOTS:
        PyMem_Free(in->group);
        in->group = NULL;
        break;
    case ARG_OBJECT_VALUE:
        Py_CLEAR(in->expected);
        break;
    default:
        break;
    }
}

/* --- which values must own a reference -------------------------------------------------------- */

static bool may_run_python(const Instr *in) {
    switch (in->op->purity) {
    case PURE:
        return false;
    case IMPURE:
        return true;
    case KEY:
    case VALUE:
        return !mc_equality_is_pure(in->object);
    case TENSOR: {
        PyObject *reason = mc_tensor_probe(NULL, NULL);
        bool slow = reason != Py_None;
        PyErr_Clear();
        Py_XDECREF(reason);
        return slow;
    }
    }
    return true;
}

static void note_use(int *last_use, const Instr *in, int at) {
    if (in->slot >= 0) {
        last_use[in->slot] = at;
    }
    if (in->op->arg == ARG_SLOT_SLOT) {
        last_use[in->number] = at;
    }
    for (Py_ssize_t i = 0; mc_has_group(in) && i < in->group->size; i++) {
        last_use[in->group->members[i].slot] = at;
    }
}

/* A slot filled at p and used last at q must own its value if an instruction in (p, q] may run Python code.
 */
static bool mark_kept(GuardProgram *self) {
    int *last_use = PyMem_Calloc((size_t)self->nslots + 1, sizeof(int));
    int *next_impure = PyMem_Calloc((size_t)self->count + 1, sizeof(int));
    bool fine = last_use != NULL && next_impure != NULL;
    for (int i = 0; fine && i < self->count; i++) {
        note_use(last_use, &self->instrs[i], i);
    }
    for (Py_ssize_t i = 0; fine && i < self->nfetch; i++) {
        last_use[self->fetch[i]] = (int)self->count;
    }
    if (fine) {
        next_impure[self->count] = (int)self->count + 1;
    }
    for (int i = (int)self->count - 1; fine && i >= 0; i--) {
        next_impure[i] = may_run_python(&self->instrs[i]) ? i : next_impure[i + 1];
    }
    for (int i = 0; fine && i < self->count; i++) {
        Instr *in = &self->instrs[i];
        in->keep = in->out >= 0 && next_impure[i + 1] <= last_use[in->out];
    }
    PyMem_Free(last_use);
    PyMem_Free(next_impure);
    return fine;
}

static bool build_tapes(GuardProgram *self) {
    bool *impure = PyMem_Calloc((size_t)self->count + 1, sizeof(bool));
    for (Py_ssize_t i = 0; impure != NULL && i < self->count; i++) {
        impure[i] = may_run_python(&self->instrs[i]);
    }
    bool fine = impure != NULL && mc_tapes_build(self, impure);
    PyMem_Free(impure);
    return fine;
}

/* --- the constructor -------------------------------------------------------------------------- */

static bool build_fetch(GuardProgram *self, PyObject *fetch, const int *slot_of, Py_ssize_t count) {
    Py_ssize_t size = PyTuple_GET_SIZE(fetch);
    self->fetch = PyMem_Calloc((size_t)size + 1, sizeof(int));
    Operands from = {NULL, count, &(const Row){.name = "fetch"}, slot_of};
    for (Py_ssize_t i = 0; self->fetch != NULL && i < size; i++) {
        if (!operand_slot(&from, PyTuple_GET_ITEM(fetch, i), &self->fetch[i])) {
            return false;
        }
        self->nfetch++;
    }
    return self->fetch != NULL;
}

/* DICT_ATTR is DICT, once per object, and ITEM: so that all that hangs from one dict is seen to. */
static void split_dict_attr(GuardProgram *self, int *dict_of) {
    Instr *in = &self->instrs[self->count - 1];
    if (dict_of[in->slot] == 0) {
        dict_of[in->slot] = (int)++self->nslots; /* slot + 1: 0 is none */
        in[1] = *in;
        *in = (Instr){
            .op = row_named("DICT"), .slot = in->slot, .out = (int)self->nslots - 1, .index = in->index};
        in++;
        self->count++;
    }
    in->op = row_named("ITEM");
    in->slot = dict_of[in->slot] - 1;
}

static bool build_instrs(GuardProgram *self, PyObject *list, int *slot_of, int *dict_of) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(list); i++) {
        Instr *in = &self->instrs[self->count];
        Operands from = {PyTuple_GET_ITEM(list, i), i, NULL, slot_of};
        bool built = build_instr(in, &from);
        self->count += in->op != NULL; /* what is counted is freed */
        if (!built) {
            return false;
        }
        if (strcmp(in->op->name, "DICT_ATTR") == 0) {
            split_dict_attr(self, dict_of);
            in = &self->instrs[self->count - 1];
        }
        in->out = slot_of[i] = in->op->get != NULL ? (int)self->nslots++ : -1;
    }
    return true;
}

static bool build_all(GuardProgram *self, PyObject *list, PyObject *fetch) {
    size_t count = (size_t)PyTuple_GET_SIZE(list);
    int *slot_of = PyMem_Calloc(count + 1, sizeof(int)),
        *dict_of = PyMem_Calloc(2 * count + 1, sizeof(int));
    self->instrs = PyMem_Calloc(2 * count + 1, sizeof(Instr));
    bool fine = self->instrs != NULL && slot_of != NULL && dict_of != NULL;
    fine = fine && build_instrs(self, list, slot_of, dict_of) &&
           build_fetch(self, fetch, slot_of, (Py_ssize_t)count);
    PyMem_Free(slot_of);
    PyMem_Free(dict_of);
    return fine && build_tapes(self) && mark_kept(self);
}

PyObject *mc_program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"instructions", "fetch", NULL};
    PyObject *instructions, *fetch = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &instructions, &fetch)) {
        return NULL;
    }
    GuardProgram *self = (GuardProgram *)type->tp_alloc(type, 0);
    PyObject *list = PySequence_Tuple(instructions);
    fetch = fetch ? PySequence_Tuple(fetch) : PyTuple_New(0);
    if (self == NULL || list == NULL || fetch == NULL || !build_all(self, list, fetch)) {
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        Py_CLEAR(self);
    }
    Py_XDECREF(list);
    Py_XDECREF(fetch);
    return (PyObject *)self;
}
