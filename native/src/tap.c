#include "tap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "locks.h"
#include "volume.h"

/* Once until somebody comes and takes. The journal's lock is held. */
static void wake(struct bd_tap *tap)
{
    if (tap->rung)
        return;
    tap->rung = true;
    /* Full or interrupted: then somebody is woken already. */
    (void)!eventfd_write(tap->event, 1);
}

static void forget_all(struct bd_tap *tap)
{
    for (uint32_t i = 0; i < tap->count; i++)
        atomic_fetch_sub(&tap->spans[(tap->head + i) % BD_TAP_SPANS].segment->pins, 1);
    tap->count = 0;
    tap->bytes = 0;
}

int bd_tap_open(struct bd_volume *volume, uint64_t limit, uint64_t *seq)
{
    if (limit < BD_TAP_MIN_BUFFER)
        return -EINVAL;
    struct bd_tap *tap = calloc(1, sizeof *tap);
    if (tap == NULL)
        return -ENOMEM;
    tap->limit = limit;
    tap->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int error = tap->event < 0 ? -errno : 0;
    if (error == 0) {
        bd_lock(&volume->journal->lock);
        if (volume->tap != NULL)
            error = -EEXIST;
        else
            volume->tap = tap;
        *seq = volume->seq; /* no group is gathered while nobody has the lock */
        pthread_mutex_unlock(&volume->journal->lock);
    }
    if (error < 0) {
        if (tap->event >= 0)
            close(tap->event);
        free(tap);
    }
    return error;
}

int bd_tap_close(struct bd_volume *volume)
{
    bd_lock(&volume->journal->lock);
    struct bd_tap *tap = volume->tap;
    bool busy = tap != NULL && tap->taking;
    if (tap != NULL && !busy) {
        volume->tap = NULL;
        forget_all(tap);
    }
    pthread_mutex_unlock(&volume->journal->lock);
    if (busy)
        return -EBUSY;
    if (tap != NULL) {
        close(tap->event);
        free(tap);
    }
    return 0;
}

int bd_tap_begin(struct bd_volume *volume, uint64_t *seq)
{
    bd_lock(&volume->journal->lock);
    struct bd_tap *tap = volume->tap;
    int error = tap == NULL ? -ENOENT : tap->taking ? -EBUSY : 0;
    if (error == 0) {
        forget_all(tap);
        tap->lost = false;
        tap->rung = false; /* it rang while it was taken, for what is forgotten now */
        *seq = volume->seq;
    }
    pthread_mutex_unlock(&volume->journal->lock);
    return error;
}

void bd_tap_note(struct bd_tap *tap, struct bd_segment *segment, uint64_t position, uint64_t end)
{
    if (tap->lost)
        return;
    struct bd_tap_span *last =
        tap->count > 0 ? &tap->spans[(tap->head + tap->count - 1) % BD_TAP_SPANS] : NULL;
    bool adjacent = last != NULL && last->segment == segment && last->end == position;
    tap->bytes += end - position;
    if (tap->bytes > tap->limit || (!adjacent && tap->count == BD_TAP_SPANS)) {
        forget_all(tap);
        tap->lost = true;
    } else if (adjacent) {
        last->end = end;
    } else {
        atomic_fetch_add(&segment->pins, 1);
        tap->spans[(tap->head + tap->count++) % BD_TAP_SPANS] =
            (struct bd_tap_span){.segment = segment, .position = position, .end = end};
    }
    wake(tap);
}

void bd_tap_strip(struct bd_record *record, uint8_t *bytes)
{
    record->node_epoch = 0;
    record->lsn = 0;
    record->volume = 0;
    record->chain = 0;
    bd_record_encode(record, bytes);
}

/* `length` bytes of the journal are at `from` in the buffer; whole records of the volume are moved
 * to `*to` in their wire form. How many bytes were gone through, or -EIO. */
static int64_t strip_all(const struct bd_volume *volume, uint8_t *buffer, size_t from,
                         size_t length, size_t *to, struct bd_taken *taken)
{
    size_t at = 0;
    while (length - at >= BD_RECORD_HEADER) {
        struct bd_record record;
        if (bd_record_decode(buffer + from + at, &record) < 0)
            return -EIO;
        uint64_t footprint = bd_record_footprint(&record);
        if (footprint > length - at)
            break;
        if (bd_record_has_seq(record.op) && record.volume == volume->number) {
            memmove(buffer + *to, buffer + from + at, (size_t)footprint);
            bd_tap_strip(&record, buffer + *to);
            *to += (size_t)footprint;
            if (taken->first_seq == 0)
                taken->first_seq = record.seq;
            taken->last_seq = record.seq;
        }
        at += (size_t)footprint;
    }
    return (int64_t)at;
}

/* Read from the first `count` of `spans` what fits; how much of each was used up goes to `used`. */
static int read_spans(struct bd_volume *volume, const struct bd_tap_span *spans, uint32_t count,
                      uint64_t *used, uint8_t *buffer, size_t capacity, bool nowait,
                      struct bd_taken *taken)
{
    size_t to = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t left = spans[i].end - spans[i].position;
        size_t length = left < capacity - to ? (size_t)left : capacity - to;
        struct bd_file *file = &spans[i].segment->file;
        int error = bd_file_read_exact(file, buffer + to, length, spans[i].position, nowait);
        if (error < 0)
            return nowait && error == -EAGAIN ? error : -EIO;
        int64_t gone = strip_all(volume, buffer, to, length, &to, taken);
        if (gone < 0)
            return (int)gone;
        used[i] = (uint64_t)gone;
        if (used[i] < left)
            break; /* the buffer is full, but for part of a record */
    }
    taken->length = to;
    return 0;
}

/* Give up what was taken. The journal's lock is held. */
static void drop_used(struct bd_tap *tap, const uint64_t *used, uint32_t count)
{
    for (uint32_t i = 0; i < count && tap->count > 0; i++) {
        struct bd_tap_span *span = &tap->spans[tap->head];
        span->position += used[i];
        tap->bytes -= used[i];
        if (span->position < span->end)
            return;
        atomic_fetch_sub(&span->segment->pins, 1);
        tap->head = (tap->head + 1) % BD_TAP_SPANS;
        tap->count--;
    }
}

int bd_tap_take(struct bd_volume *volume, uint8_t *buffer, size_t capacity, bool nowait,
                struct bd_taken *taken)
{
    enum { AT_ONCE = 64 };
    struct bd_tap_span spans[AT_ONCE];
    uint64_t used[AT_ONCE] = {0};
    *taken = (struct bd_taken){0};
    if (capacity < BD_TAP_MIN_BUFFER)
        return -EINVAL;
    bd_lock(&volume->journal->lock);
    struct bd_tap *tap = volume->tap;
    int error = tap == NULL ? -ENOENT : tap->taking ? -EBUSY : 0;
    uint32_t count = 0;
    if (error == 0) {
        eventfd_t value;
        (void)!eventfd_read(tap->event, &value);
        tap->rung = false;
        tap->taking = true;
        for (; count < AT_ONCE && count < tap->count; count++) {
            spans[count] = tap->spans[(tap->head + count) % BD_TAP_SPANS];
            /* Of our own: the tap may forget all while this reads. */
            atomic_fetch_add(&spans[count].segment->pins, 1);
        }
    }
    pthread_mutex_unlock(&volume->journal->lock);
    if (error < 0)
        return error;

    error = read_spans(volume, spans, count, used, buffer, capacity, nowait, taken);

    bd_lock(&volume->journal->lock);
    for (uint32_t i = 0; i < count; i++)
        atomic_fetch_sub(&spans[i].segment->pins, 1);
    tap->taking = false;
    if (tap->lost || error < 0)
        *taken = (struct bd_taken){.lost = tap->lost}; /* what was read is not in order any more */
    else
        drop_used(tap, used, count);
    if (tap->count > 0)
        wake(tap);
    pthread_mutex_unlock(&volume->journal->lock);
    return error;
}
