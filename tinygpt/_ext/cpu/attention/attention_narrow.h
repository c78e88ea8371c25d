/* Attention on arrays in bfloat16: each head is read into floats, computed as in float, and its results are rounded
 * once. That costs O(T D), against O(T^2 D) for the head. lse stays in float32.
 */
#ifndef TINYGPT_ATTENTION_NARROW_H
#define TINYGPT_ATTENTION_NARROW_H

#include "attention.h"
#include "bfloat16.h"

#define AT(name, head) ((uint16_t *)p->name + (head) / p->H * p->name##_stride[0] + (head) % p->H * p->name##_stride[1])
#define NEED(list, name, head) tg_will_need(list, AT(name, head), p->name##_stride[2] * (ptrdiff_t)sizeof(uint16_t))
#define READ(name, rows, head) tg_read_head(name, AT(name, head), p->name##_stride[2], rows, p->D)
#define WRITE(name, rows, head) tg_write_head(AT(name, head), name, p->name##_stride[2], rows, p->D)

static void tg_read_head(float *out, const uint16_t *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t D) {
    for (ptrdiff_t i = 0; i < rows; i++) tg_widen(out + i * D, x + i * stride, D);
}
static void tg_write_head(uint16_t *out, const float *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t D) {
    for (ptrdiff_t i = 0; i < rows; i++) tg_narrow(out + i * stride, x + i * D, D);
}

/* p for heads whose rows are copied, D floats apart. */
static struct tg_attention tg_of_copies(const struct tg_attention *p) {
    struct tg_attention copies = *p;
    copies.q_stride[2] = copies.k_stride[2] = copies.v_stride[2] = copies.y_stride[2] = copies.dy_stride[2] = p->D;
    copies.dq_stride[2] = copies.dk_stride[2] = copies.dv_stride[2] = p->D;
    return copies;
}

static void tg_heads_forward_narrow(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_attention *p = task;
    const struct tg_attention copies = tg_of_copies(p);
    const ptrdiff_t width = tg_padded_float(p->D, tg_LANES_float), keys = tg_padded_float(p->Tk, TG_FEW_ROWS);
    const ptrdiff_t size = (2 * keys + 2 * TG_QUERIES) * width + TG_KEYS * TG_QUERIES;
    float *memory = tg_memory_float(size + 2 * (p->Tq + p->Tk) * p->D);
    if (!memory) p->failed = 1;
    float *q = memory + size, *k = q + p->Tq * p->D, *v = k + p->Tk * p->D, *y = v + p->Tk * p->D;
    for (ptrdiff_t head = begin; memory && head < end; head++) {
        struct tg_ahead ahead = tg_ahead_of(p, sizeof(uint16_t), TG_PACE_FORWARD);
        if (head + 1 < p->B * p->H) {
            NEED(&ahead.next, q, head + 1);
            NEED(&ahead.next, k, head + 1);
            NEED(&ahead.next, v, head + 1);
        }
        NEED(&ahead.now, y, head);
        READ(q, p->Tq, head);
        READ(k, p->Tk, head);
        READ(v, p->Tk, head);
        tg_head_forward_float(&copies, memory, q, k, v, y, (float *)p->lse + 2 * head * p->Tq, (uint64_t)(head * p->Tq),
                              &ahead);
        WRITE(y, p->Tq, head);
    }
    tg_return(memory);
}

static void tg_heads_backward_narrow(void *task, ptrdiff_t begin, ptrdiff_t end) {
    struct tg_attention *p = task;
    const struct tg_attention copies = tg_of_copies(p);
    const ptrdiff_t width = tg_padded_float(p->D, tg_LANES_float), keys = tg_padded_float(p->Tk, TG_FEW_ROWS);
    const ptrdiff_t size = (4 * keys + 5 * TG_QUERIES) * width + 2 * TG_KEYS_BACKWARD * TG_QUERIES;
    float *memory = tg_memory_float(size + 4 * (p->Tq + p->Tk) * p->D);
    if (!memory) p->failed = 1;
    float *q = memory + size, *y = q + p->Tq * p->D, *dy = y + p->Tq * p->D, *dq = dy + p->Tq * p->D;
    float *k = dq + p->Tq * p->D, *v = k + p->Tk * p->D, *dk = v + p->Tk * p->D, *dv = dk + p->Tk * p->D;
    for (ptrdiff_t head = begin; memory && head < end; head++) {
        struct tg_ahead ahead = tg_ahead_of(p, sizeof(uint16_t), TG_PACE_BACKWARD);
        if (head + 1 < p->B * p->H) {
            NEED(&ahead.next, q, head + 1);
            NEED(&ahead.next, k, head + 1);
            NEED(&ahead.next, v, head + 1);
            NEED(&ahead.next, y, head + 1);
            NEED(&ahead.next, dy, head + 1);
        }
        NEED(&ahead.now, dq, head);
        NEED(&ahead.now, dk, head);
        NEED(&ahead.now, dv, head);
        READ(q, p->Tq, head);
        READ(k, p->Tk, head);
        READ(v, p->Tk, head);
        READ(y, p->Tq, head);
        READ(dy, p->Tq, head);
        tg_head_backward_float(&copies, memory, dy, q, k, v, y, (float *)p->lse + 2 * head * p->Tq, dq, dk, dv,
                               (uint64_t)(head * p->Tq), &ahead);
        WRITE(dq, p->Tq, head);
        WRITE(dk, p->Tk, head);
        WRITE(dv, p->Tk, head);
    }
    tg_return(memory);
}
#undef AT
#undef NEED
#undef READ
#undef WRITE

#endif
