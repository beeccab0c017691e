/** Cash on delivery, 代引き: no outside call. The claim is the whole payment; the carrier takes the money. */
import type { Gateway, GatewayAnswer } from "./port.ts";

const never = async (): Promise<GatewayAnswer> => {
  throw new Error("cash on delivery has no gateway to ask");
};

export const codGateway: Gateway = {
  name: "cod",
  needsToken: false,
  needsPermits: false,
  charge: never,
  lookUp: never,
  cancel: never,
  refund: async () => ({ outcome: "refunded" }),
  list: async () => ({ charges: [], next: null, odd: 0 }),
};
