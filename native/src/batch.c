#include "batch.h"

#include <errno.h>

#include "crc32c.h"
#include "gate.h"
#include "locks.h"
#include "sites.h"

static int append_write(struct bd_volume *volume, struct bd_action *action, uint64_t now_ns)
{
    /* All of it or nothing: what ran out of space between two of its records would be torn. */
    if (!bd_journal_has_space(volume->journal, action->length))
        return -ENOSPC;
    /* Nor may it wait with a part done: submitted again it would be done twice, and what another
     * client wrote over that part meanwhile would be gone. (Where requests are longer than a
     * segment, that is so.) */
    if (!bd_journal_has_room(volume->journal, action->offset, action->length, now_ns))
        return -EAGAIN;
    uint64_t done = 0;
    while (done < action->length) {
        uint64_t length =
            bd_journal_part(volume->journal, action->offset + done, action->length - done);
        struct bd_record record = {
            .op = BD_RECORD_WRITE, .offset = action->offset + done, .length = length};
        volume->journal->midway = done > 0;
        int error = bd_journal_add(volume->journal, volume, record, action->data + done, now_ns,
                                   &action->status);
        volume->journal->midway = false;
        if (error < 0)
            return error;
        done += length;
    }
    return 0;
}

static int append(struct bd_volume *volume, struct bd_action *action, uint64_t now_ns)
{
    if (action->if_seq) {
        /* Of several records the first could be in the log and the rest wait for space: submitted
         * again, it would find its own condition broken. */
        if (action->length > volume->journal->max_payload - BD_PAGE)
            return -EINVAL;
        if (bd_journal_seq(volume->journal, volume) != action->seq ||
            bd_site_fires(BD_SITE_CONFLICT))
            return -ECANCELED;
    }
    if (action->kind == BD_ACTION_WRITE)
        return append_write(volume, action, now_ns);
    struct bd_record record = {.op = action->kind == BD_ACTION_UNMAP ? BD_RECORD_UNMAP
                                                                     : BD_RECORD_ZERO,
                               .offset = action->offset,
                               .length = action->length};
    return bd_journal_add(volume->journal, volume, record, NULL, now_ns, &action->status);
}

/* Why nothing of clients is appended to the volume; 0 when it is. The journal's lock is held. */
static int refusal(const struct bd_volume *volume)
{
    bool shut = volume->gate != NULL && atomic_load(&volume->gate->shut);
    return volume->retired || shut ? -ESHUTDOWN : 0;
}

/* As `append`; and what was gathered of it, perhaps a part, is not known to other nodes. */
static int append_gated(struct bd_volume *volume, struct bd_action *action, uint64_t now_ns)
{
    uint64_t before = bd_journal_seq(volume->journal, volume);
    int error = append(volume, action, now_ns);
    action->wait_seq = bd_journal_seq(volume->journal, volume);
    if (action->wait_seq != before)
        bd_gate_note(volume->gate, action->wait_seq, action->offset, action->length);
    return error;
}

static bool overlaps_gathered(const struct bd_action *actions, int from, int to,
                              const struct bd_action *read)
{
    for (int i = from; i < to; i++)
        if (actions[i].kind != BD_ACTION_READ && actions[i].length > 0 &&
            actions[i].offset < read->offset + read->length &&
            read->offset < actions[i].offset + actions[i].length)
            return true;
    return false;
}

/* The caller looked, but without a lock: the volume may have shrunk since. */
static bool is_within(const struct bd_volume *volume, const struct bd_action *action)
{
    uint64_t size = __atomic_load_n(&volume->size, __ATOMIC_RELAXED);
    return action->offset <= size && action->length <= size - action->offset;
}

static void finish_read(struct bd_volume *volume, struct bd_action *action)
{
    struct bd_read_fault fault;
    int error = action->may_view ? bd_volume_view(volume, action->offset, action->length,
                                                  action->data, &action->view, &fault)
                                 : bd_volume_read(volume, action->offset, action->length,
                                                  action->data, true, &fault);
    action->status = error;
    /* A fault is looked at again on the slow path, which says what is wrong with which bytes. */
    bool final = error == 0 || error == -ESHUTDOWN;
    action->state = final ? BD_ACTION_DONE : BD_ACTION_WAIT_READ;
}

void bd_batch_execute(struct bd_volume *volume, struct bd_action *actions, int count,
                      uint64_t now_ns)
{
    struct bd_journal *journal = volume->journal;
    bool locked = false;
    int gathered_from = 0;
    for (int i = 0; i < count; i++) {
        struct bd_action *action = &actions[i];
        action->status = 0;
        action->state = BD_ACTION_DONE;
        switch (action->kind) {
        case BD_ACTION_READ:
            if (locked && overlaps_gathered(actions, gathered_from, i, action)) {
                bd_journal_commit(journal);
                pthread_mutex_unlock(&journal->lock);
                locked = false;
            }
            if (is_within(volume, action))
                finish_read(volume, action);
            else
                action->status = -EINVAL;
            break;
        case BD_ACTION_WRITE:
        case BD_ACTION_UNMAP:
        case BD_ACTION_ZERO:
            if (!locked) {
                bd_lock(&journal->lock);
                locked = true;
                gathered_from = i;
            }
            int error = refusal(volume);
            if (error == 0 && !is_within(volume, action))
                error = -EINVAL;
            if (error == 0)
                error = volume->gate != NULL ? append_gated(volume, action, now_ns)
                                             : append(volume, action, now_ns);
            if (error == -EAGAIN)
                action->state = BD_ACTION_WAIT_SPACE;
            else if (error < 0)
                action->status = error;
            else if (action->sync)
                action->state = BD_ACTION_WAIT_SYNC;
            break;
        case BD_ACTION_FLUSH:
            if (locked) {
                action->state = BD_ACTION_WAIT_SYNC;
                action->wait_seq = bd_journal_seq(journal, volume);
            } else {
                bd_lock(&journal->lock);
                action->wait_seq = volume->seq;
                if (journal->sealed != 0)
                    action->status = -EIO;
                else if (journal->synced_lsn + 1 != journal->next_lsn)
                    action->state = BD_ACTION_WAIT_SYNC;
                pthread_mutex_unlock(&journal->lock);
            }
            break;
        default:
            break;
        }
    }
    if (locked) {
        bd_journal_commit(journal);
        pthread_mutex_unlock(&journal->lock);
    }
    for (int i = 0; i < count; i++)
        if (actions[i].status < 0 && actions[i].kind != BD_ACTION_READ)
            actions[i].state = BD_ACTION_DONE; /* its group could not be written */
    if (volume->gate != NULL)
        bd_gate_judge(volume->gate, actions, count);
}
