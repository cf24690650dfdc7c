#include "sender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gate.h"
#include "locks.h"
#include "sites.h"
#include "tap.h"
#include "volume.h"

struct bd_sender *bd_sender_new(struct bd_volume *volume, uint64_t epoch)
{
    struct bd_sender *sender = calloc(1, sizeof *sender);
    if (sender == NULL)
        return NULL;
    sender->volume = volume;
    sender->epoch = epoch;
    sender->buffer = malloc(BD_TAP_MIN_BUFFER); /* pages that are never filled cost nothing */
    if (sender->buffer == NULL) {
        free(sender);
        return NULL;
    }
    return sender;
}

/* The oldest ones. */
static void drop_batches(struct bd_sender *sender, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        sender->bytes -= sender->batches[i].length;
        free(sender->batches[i].bytes);
    }
    sender->batch_count -= count;
    memmove(sender->batches, sender->batches + count,
            sender->batch_count * sizeof sender->batches[0]);
}

void bd_sender_free(struct bd_sender *sender)
{
    if (sender == NULL)
        return;
    drop_batches(sender, sender->batch_count);
    free(sender->buffer);
    free(sender);
}

bool bd_sender_begin(struct bd_sender *sender)
{
    drop_batches(sender, sender->batch_count);
    sender->send_count = 0;
    sender->taken_bytes = 0;
    sender->on = sender->wanted >= 2 && sender->member_count <= BD_SENDER_MEMBERS;
    int counted = 1;
    for (int i = 0; i < sender->member_count && sender->on; i++) {
        struct bd_sender_member *member = &sender->members[i];
        member->tag = member->sent_ns = member->answered_ns = 0;
        counted += member->counts;
        if (member->durable > member->received || member->received > sender->taken ||
            (member->in_step && member->sent != sender->taken))
            sender->on = false;
    }
    if (counted < sender->wanted)
        sender->on = false;
    return sender->on;
}

void bd_sender_end(struct bd_sender *sender)
{
    struct bd_volume *volume = sender->volume;
    sender->on = false;
    sender->send_count = 0;
    bd_lock(&volume->journal->lock); /* no group is gathered while nobody has it */
    sender->newest = volume->seq;
    pthread_mutex_unlock(&volume->journal->lock);
}

/* -- what is acknowledged */

/* What at least W have, of seqs of those who count; the own one is among them. */
static uint64_t least_of_most(uint64_t *seqs, int count, int wanted)
{
    for (int i = 1; i < count; i++)
        for (int at = i; at > 0 && seqs[at] > seqs[at - 1]; at--) {
            uint64_t lower = seqs[at - 1];
            seqs[at - 1] = seqs[at];
            seqs[at] = lower;
        }
    return seqs[wanted - 1];
}

static void count_acks(struct bd_sender *sender)
{
    uint64_t received[BD_SENDER_MEMBERS + 1] = {sender->taken};
    uint64_t durable[BD_SENDER_MEMBERS + 1] = {sender->own_durable};
    int count = 1;
    for (int i = 0; i < sender->member_count; i++) {
        if (!sender->members[i].counts)
            continue;
        received[count] = sender->members[i].received;
        durable[count++] = sender->members[i].durable;
    }
    uint64_t acked = least_of_most(received, count, sender->wanted);
    uint64_t synced = least_of_most(durable, count, sender->wanted);
    bool news = acked > sender->acked || synced > sender->durable;
    if (acked > sender->acked)
        sender->acked = acked;
    if (synced > sender->durable)
        sender->durable = synced;
    if (news)
        bd_gate_advance(sender->volume->gate, sender->acked, sender->durable);
}

/* Let go of what all members in step have. */
static void trim(struct bd_sender *sender)
{
    uint64_t low = sender->taken;
    for (int i = 0; i < sender->member_count; i++)
        if (sender->members[i].in_step && sender->members[i].received < low)
            low = sender->members[i].received;
    uint32_t count = 0;
    while (count < sender->batch_count && sender->batches[count].last <= low)
        count++;
    drop_batches(sender, count);
}

/* -- what is sent */

static bool is_idle(const struct bd_sender_member *member)
{
    return member->in_step && !member->busy && member->tag == 0;
}

/* The first batches that a member has not been sent: one, and as many more as go in a frame. */
static void send_behind(struct bd_sender *sender, int index, uint64_t now_ns)
{
    struct bd_sender_member *member = &sender->members[index];
    uint32_t from = 0;
    while (sender->batches[from].last <= member->sent)
        from++;
    size_t length = sender->batches[from].length;
    uint32_t count = 1;
    while (from + count < sender->batch_count &&
           length + sender->batches[from + count].length <= BD_SENDER_JOINED)
        length += sender->batches[from + count++].length;
    member->tag = sender->next_tag++;
    member->sent = sender->batches[from + count - 1].last;
    member->sent_ns = now_ns;
    sender->sends[sender->send_count++] =
        (struct bd_sender_send){.member = index,
                                .tag = member->tag,
                                .first = sender->batches[from].first,
                                .last = member->sent,
                                .from = from,
                                .count = count};
}

/* Whether there is a member in step that could be sent more than there is. */
static bool send_all(struct bd_sender *sender, uint64_t now_ns)
{
    bool idle = false;
    for (int i = 0; i < sender->member_count; i++) {
        if (!is_idle(&sender->members[i]))
            continue;
        if (sender->members[i].sent < sender->taken)
            send_behind(sender, i, now_ns);
        else
            idle = true;
    }
    return idle;
}

/* Records of which each is as long as a chunk, on the average, may be there already: that is looked
 * at by who lent (transport/group/references.py). */
static bool is_large(const struct bd_sender *sender, const struct bd_taken *taken)
{
    return taken->length / (taken->last_seq - taken->first_seq + 1) >= sender->volume->chunk_size;
}

/* What the tap has: 0, also where that is nothing; -EAGAIN. */
static int take(struct bd_sender *sender)
{
    struct bd_taken taken;
    if (sender->batch_count == BD_SENDER_BATCHES)
        return -EAGAIN;
    if (bd_tap_take(sender->volume, sender->buffer, BD_TAP_MIN_BUFFER, true, &taken) < 0 ||
        taken.lost)
        return -EAGAIN; /* who lent asks again, and hears of it */
    if (taken.first_seq == 0)
        return 0;
    struct bd_sender_batch batch = {.first = taken.first_seq,
                                    .last = taken.last_seq,
                                    .length = taken.length,
                                    .bytes = malloc(taken.length)};
    if (batch.bytes == NULL)
        abort(); /* the tap has given them up, and nobody could know what is missing */
    memcpy(batch.bytes, sender->buffer, taken.length);
    sender->batches[sender->batch_count++] = batch;
    sender->bytes += batch.length;
    sender->taken_bytes += batch.length;
    bool follows = batch.first == sender->taken + 1;
    sender->taken = batch.last;
    if (bd_site_fires(BD_SITE_ACK_EARLY))
        bd_gate_advance(sender->volume->gate, sender->taken, sender->durable);
    return !follows || sender->bytes > sender->room || is_large(sender, &taken) ? -EAGAIN : 0;
}

int bd_sender_turn(struct bd_sender *sender, uint64_t now_ns)
{
    sender->send_count = 0;
    if (!sender->on)
        return -EAGAIN;
    if (!send_all(sender, now_ns))
        return 0;
    int error = take(sender);
    if (error == 0)
        send_all(sender, now_ns);
    return error;
}

int bd_sender_acked(struct bd_sender *sender, uint64_t tag, uint64_t epoch, uint64_t received,
                    uint64_t durable, uint64_t now_ns)
{
    sender->send_count = 0;
    if (!sender->on || tag == 0 || epoch != sender->epoch)
        return -ENOENT;
    struct bd_sender_member *member = NULL;
    for (int i = 0; i < sender->member_count; i++)
        if (sender->members[i].tag == tag)
            member = &sender->members[i];
    if (member == NULL || received != member->sent)
        return -ENOENT;
    member->tag = 0;
    member->received = received;
    member->durable = durable < received ? durable : received;
    if (member->sent_ns > member->answered_ns)
        member->answered_ns = member->sent_ns;
    trim(sender);
    count_acks(sender);
    return bd_sender_turn(sender, now_ns);
}
