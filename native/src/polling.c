#include "polling.h"

void bd_poll_served(struct bd_poll *poll, unsigned requests, uint64_t payload, bool alone)
{
    if (requests <= BD_POLL_FEW && payload <= BD_POLL_SMALL && alone)
        poll->row += poll->row < BD_POLL_ROW;
    else
        poll->row = 0;
}

bool bd_poll_worth(const struct bd_poll *poll, uint64_t now_ns)
{
    return poll->row == BD_POLL_ROW && now_ns >= poll->again_ns;
}

static void pay(struct bd_poll *poll, unsigned cost, uint64_t now_ns)
{
    if (poll->credit >= cost) {
        poll->credit -= cost;
        return;
    }
    poll->credit = 0;
    poll->again_ns = now_ns + ((uint64_t)BD_POLL_PAUSE_NS << poll->pauses);
    poll->pauses += poll->pauses < BD_POLL_MAX_PAUSES;
}

void bd_poll_ended(struct bd_poll *poll, enum bd_poll_end end, uint64_t now_ns)
{
    if (end == BD_POLL_AWAY) {
        pay(poll, BD_POLL_AWAY_COSTS, now_ns);
    } else if (end == BD_POLL_NOTHING) {
        pay(poll, BD_POLL_NOTHING_COSTS, now_ns);
    } else if (poll->credit < BD_POLL_CREDIT) {
        poll->credit++;
    } else {
        poll->pauses = 0;
    }
}
