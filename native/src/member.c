#include "member.h"

#include <errno.h>

#include "crc32c.h"
#include "locks.h"

/* The next record, every byte of it checked. 0 or -errno. */
static int next_record(const uint8_t *bytes, size_t left, struct bd_record *record)
{
    if (left < BD_RECORD_HEADER || bd_record_decode(bytes, record) < 0)
        return -EBADMSG;
    if (record->node_epoch != 0 || record->lsn != 0 || record->volume != 0 || record->chain != 0 ||
        record->flags != 0)
        return -EBADMSG; /* there is one form of a record on the wire */
    if (!bd_record_has_seq(record->op) || record->op == BD_RECORD_REFER)
        return -EPROTO;
    if (record->length == 0 || bd_record_footprint(record) > left)
        return -EBADMSG;
    if (bd_record_has_payload(record->op)) {
        size_t payload = (size_t)bd_record_payload(record);
        if (bd_crc32c(0, bytes + BD_RECORD_HEADER, payload) != record->payload_crc)
            return -EBADMSG;
        struct bd_note note;
        if (record->op == BD_RECORD_NOTE)
            return bd_note_decode(bytes + BD_RECORD_HEADER, payload, &note);
    } else if (record->payload_crc != 0) {
        return -EBADMSG;
    }
    return 0;
}

/* *first and *last: the seqs of the first and of the last record. */
static int check_all(uint32_t epoch, const uint8_t *bytes, size_t length, uint64_t *first,
                     uint64_t *last)
{
    uint64_t seq = 0;
    size_t at = 0;
    *first = *last = 0;
    while (at < length) {
        struct bd_record record;
        int error = next_record(bytes + at, length - at, &record);
        if (error < 0)
            return error;
        if (record.volume_epoch != epoch)
            return -ESTALE;
        if (record.seq == 0 || (at > 0 && record.seq != seq + 1))
            return -EBADMSG;
        *first = at == 0 ? record.seq : *first;
        *last = seq = record.seq;
        at += (size_t)bd_record_footprint(&record);
    }
    return 0;
}

/* Whether the volume can be what the record makes of it. 0 or -errno. The journal's lock is held.
 */
static int fits_volume(const struct bd_volume *volume, const struct bd_record *record,
                       const uint8_t *payload)
{
    if (record->op == BD_RECORD_NOTE) {
        struct bd_note note;
        if (bd_note_decode(payload, record->length, &note) < 0 || note.size_before != volume->size)
            return -EINVAL;
        /* What is frozen is of the state before it, and would be read over the version. */
        return note.kind == BD_NOTE_RESTORE && volume->frozen != NULL ? -EBUSY : 0;
    }
    bool within = record->offset <= volume->size && record->length <= volume->size - record->offset;
    return within ? 0 : -EINVAL;
}

/* The journal's lock is held. *failed: what the commit of a group set, if it did. */
static int append(struct bd_volume *volume, const uint8_t *bytes, const struct bd_record *found,
                  uint64_t now_ns, int *failed)
{
    uint64_t newest = bd_journal_seq(volume->journal, volume);
    if (found->seq <= newest)
        return 0;
    if (found->seq != newest + 1)
        return -ERANGE;
    int error = fits_volume(volume, found, bytes + BD_RECORD_HEADER);
    if (error < 0)
        return error;
    struct bd_record record = {.op = found->op, .offset = found->offset, .length = found->length};
    const uint8_t *payload = bd_record_has_payload(found->op) ? bytes + BD_RECORD_HEADER : NULL;
    return bd_journal_add(volume->journal, volume, record, payload, now_ns, failed);
}

/* All of the bytes were checked, and the journal's lock is held. As bd_member_append. */
static int append_all(struct bd_volume *volume, uint32_t epoch, const uint8_t *bytes, size_t length,
                      uint64_t now_ns, bool notes, struct bd_member_note *note)
{
    int error = volume->retired ? -ESHUTDOWN : epoch != volume->epoch ? -ESTALE : 0;
    int failed = 0;
    for (size_t at = 0; at < length && error == 0 && failed == 0;) {
        struct bd_record record;
        bd_record_decode(bytes + at, &record); /* has been checked */
        bool is_note =
            record.op == BD_RECORD_NOTE && record.seq > bd_journal_seq(volume->journal, volume);
        if (is_note && !notes) {
            *note = (struct bd_member_note){.found = true, .at = at};
            error = -ENOMSG;
            break;
        }
        error = append(volume, bytes + at, &record, now_ns, &failed);
        if (is_note && error == 0) {
            *note = (struct bd_member_note){
                .found = true, .lsn = volume->journal->group.lsn - 1, .at = at};
            break; /* what follows is of another size, perhaps */
        }
        at += (size_t)bd_record_footprint(&record);
    }
    int written = bd_journal_commit(volume->journal);
    if (failed == 0)
        failed = written;
    if (failed < 0)
        note->lsn = 0;
    return failed < 0 ? failed : error;
}

int bd_member_append(struct bd_volume *volume, uint32_t epoch, const uint8_t *bytes, size_t length,
                     uint64_t now_ns, bool notes, uint64_t *seq, struct bd_member_note *note)
{
    uint64_t first;
    uint64_t last;
    /* First what costs nothing: who was superseded goes on sending for a while. It is looked at
     * again under the lock. */
    int error = __atomic_load_n(&volume->epoch, __ATOMIC_RELAXED) != epoch ? -ESTALE : 0;
    if (error == 0)
        error = check_all(epoch, bytes, length, &first, &last);
    bd_lock(&volume->journal->lock);
    if (error == 0)
        error = append_all(volume, epoch, bytes, length, now_ns, notes, note);
    *seq = volume->seq;
    pthread_mutex_unlock(&volume->journal->lock);
    return error;
}

void bd_member_take_plain(struct bd_volume *volume, uint64_t epoch)
{
    bd_lock(&volume->journal->lock);
    __atomic_store_n(&volume->plain.epoch, epoch, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&volume->journal->lock);
}

void bd_member_tell_durable(struct bd_volume *volume, uint64_t seq)
{
    bd_lock(&volume->journal->lock);
    volume->plain.durable = seq;
    pthread_mutex_unlock(&volume->journal->lock);
}

uint64_t bd_member_answered_ns(struct bd_volume *volume)
{
    bd_lock(&volume->journal->lock);
    uint64_t answered_ns = volume->plain.answered_ns;
    pthread_mutex_unlock(&volume->journal->lock);
    return answered_ns;
}

bool bd_member_append_plain(struct bd_volume *volume, const struct bd_member_plain *asked,
                            const uint8_t *bytes, size_t length, uint64_t now_ns, uint64_t boot_ns,
                            uint64_t *durable)
{
    uint64_t first;
    uint64_t last;
    if (asked->epoch == 0 || asked->written > UINT32_MAX || length == 0 ||
        asked->epoch != __atomic_load_n(&volume->plain.epoch, __ATOMIC_RELAXED) ||
        check_all((uint32_t)asked->written, bytes, length, &first, &last) < 0 ||
        first != asked->first || last != asked->last)
        return false;
    bool taken = false;
    bd_lock(&volume->journal->lock);
    if (asked->epoch == volume->plain.epoch && first == volume->seq + 1) {
        struct bd_member_note note = {0};
        /* Before it is known whether all of them are: that may only make a successor wait. */
        volume->plain.answered_ns = boot_ns;
        taken = append_all(volume, (uint32_t)asked->written, bytes, length, now_ns, false, &note) ==
                    0 &&
                volume->seq == last;
        *durable = volume->plain.durable;
    }
    pthread_mutex_unlock(&volume->journal->lock);
    return taken;
}

void bd_member_begin(struct bd_volume *volume, uint32_t epoch)
{
    bd_lock(&volume->journal->lock); /* no group is gathered while nobody has it */
    __atomic_store_n(&volume->epoch, epoch, __ATOMIC_RELAXED); /* the lock is not taken to peek */
    pthread_mutex_unlock(&volume->journal->lock);
}
