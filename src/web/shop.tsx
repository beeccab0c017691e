/** @jsxImportSource hono/jsx */
/**
 * The demo storefront of local mode. The pages are frames with the words and what never changes; everything that does
 * is filled in by browser/shop.ts through the public API, so that an integrator can copy it.
 */

import type { Child, FC } from "hono/jsx";
import { inLanguage } from "../domain/language.ts";
import { formatInstant, formatMoney } from "../domain/money.ts";
import type { Sale } from "../domain/sale.ts";
import type { PageContext } from "./layout.tsx";

const TEST_CARDS = ["tok_ok", "tok_declined", "tok_slow", "tok_3ds", "tok_timeout_after_charge", "tok_error_then_ok"];

interface Props {
  pageContext: PageContext;
  sale: Sale;
}

const Steps: FC<{ pageContext: PageContext }> = ({ pageContext: { w } }) => (
  <ol class="steps" aria-label={w.steps}>
    {[w.stepChoose, w.stepDetails, w.stepReview, w.stepDone].map((step, i) => (
      <li data-step={i}>{step}</li>
    ))}
  </ol>
);

const Offer: FC<Props> = ({ pageContext: { w, language, assets }, sale }) => (
  <section id="offer" aria-labelledby="offer-title">
    <h1 id="offer-title">{sale.name}</h1>
    <p id="status" class="status">
      <span id="status-words">{w.loading}</span> <strong id="countdown" role="timer" />
    </p>
    <p class="fine">
      {w.limit(sale.maxUnitsPerCustomer)} · {w.shippingFee} {formatMoney(sale.shippingFee, sale.currency, language)} ·{" "}
      {w.holdFor(`${Math.round(sale.holdMs / 60_000) || 1} ${w.minutes}`)}
    </p>
    <ul class="items">
      {[...sale.items.values()].map((i) => (
        <li data-sku={i.sku}>
          <img src={assets["bag.svg"].path} alt="" width="72" height="72" />
          <div class="what">
            <h2>{i.name}</h2>
            <p class="price">
              {formatMoney(i.unitPrice, sale.currency, language)} <small>{w.taxIncluded}</small>
            </p>
            <p class="availability" data-availability="">
              {w.loading}
            </p>
          </div>
          <div class="buy">
            <label>
              {w.quantity}
              <select>
                {Array.from({ length: Math.min(sale.maxUnitsPerCustomer, 9) }, (_, n) => (
                  <option value={n + 1}>{n + 1}</option>
                ))}
              </select>
            </label>
            <button type="button" class="primary" disabled aria-label={w.buyItem(i.name)}>
              {w.buy}
            </button>
          </div>
        </li>
      ))}
    </ul>
    <p id="news" class="sr" aria-live="polite" />
  </section>
);

/** Time left and what is in the cart: at the top of both steps before paying. */
const Held: FC<{ pageContext: PageContext; name: string }> = ({ pageContext: { w }, name }) => (
  <div class="held">
    <p class="left">
      {w.timeLeft} <strong role="timer" data-time-left="" />
    </p>
    <table>
      <caption class="sr">{`${w.cart} (${name})`}</caption>
      <tbody data-lines="" />
    </table>
  </div>
);

const Field: FC<{
  pageContext: PageContext;
  name: string;
  label: string;
  type?: string;
  autocomplete: string;
  required?: boolean;
  max: number;
}> = (f) => (
  <p class="field">
    <label for={f.name}>
      {f.label} <small>{f.required ? f.pageContext.w.required : f.pageContext.w.optional}</small>
    </label>
    <input
      id={f.name}
      name={f.name}
      type={f.type ?? "text"}
      autocomplete={f.autocomplete}
      maxlength={f.max}
      required={f.required === true}
    />
  </p>
);

const Details: FC<Props> = ({ pageContext, sale }) => {
  const { w } = pageContext;
  return (
    <section id="details" aria-labelledby="details-title" hidden>
      <h1 id="details-title" tabindex={-1}>
        {w.heldForYou}
      </h1>
      <Held pageContext={pageContext} name={w.stepDetails} />
      <form id="details-form" novalidate>
        <h2>{w.yourDetails}</h2>
        <Field pageContext={pageContext} name="name" label={w.name} autocomplete="name" required max={200} />
        <Field
          pageContext={pageContext}
          name="email"
          label={w.email}
          type="email"
          autocomplete="email"
          required
          max={254}
        />
        <Field pageContext={pageContext} name="phone" label={w.phone} type="tel" autocomplete="tel" max={40} />
        <Field pageContext={pageContext} name="postalCode" label={w.postalCode} autocomplete="postal-code" max={20} />
        <Field pageContext={pageContext} name="address" label={w.address} autocomplete="street-address" max={500} />
        <fieldset>
          <legend>{w.payment}</legend>
          {sale.gateways.map((g, i) => (
            <p>
              <label>
                <input type="radio" name="gateway" value={g} checked={i === 0} /> {w.gateways[g] ?? g}
              </label>
            </p>
          ))}
          {sale.gateways.includes("sandbox") && (
            <p class="field" id="test-card">
              <label for="token">{w.testCard}</label>
              <select id="token" name="token">
                {TEST_CARDS.map((t) => (
                  <option value={t}>
                    {w.testCards[t]} ({t})
                  </option>
                ))}
              </select>
            </p>
          )}
        </fieldset>
        <p class="buttons">
          <button type="submit" class="primary">
            {w.toReview}
          </button>
          <button type="button" data-release="">
            {w.release}
          </button>
        </p>
      </form>
    </section>
  );
};

const Row: FC<{ label: string; children?: Child }> = ({ label, children }) => (
  <>
    <dt>{label}</dt>
    <dd>{children}</dd>
  </>
);

/**
 * The final confirmation screen: everything that 特定商取引法 第十二条の六 asks for, beside the items and the total that the hold
 * has.
 */
const Review: FC<Props> = ({ pageContext, sale }) => {
  const { w, language } = pageContext;
  const { shop, terms } = sale.details;
  const own = (text: Parameters<typeof inLanguage>[0]) => inLanguage(text, language) ?? w.notSet;
  const until = formatInstant(sale.closesAtMs, sale.currency, language);
  return (
    <section id="review" aria-labelledby="review-title" hidden>
      <h1 id="review-title" tabindex={-1}>
        {w.review}
      </h1>
      <p>{w.reviewLead}</p>
      <h2>{w.items}</h2>
      <Held pageContext={pageContext} name={w.stepReview} />
      <dl class="terms">
        <Row label={w.contactAndShipTo}>
          <span id="review-contact" />
        </Row>
        <Row label={w.paymentTime}>
          <span id="review-payment" data-own={terms?.payment && own(terms.payment)} />
        </Row>
        <Row label={w.delivery}>{own(terms?.delivery)}</Row>
        <Row label={w.cancellation}>{own(terms?.cancellation)}</Row>
        <Row label={w.period}>{w.periodUntil(until, sale.maxUnitsPerCustomer)}</Row>
        {terms?.notes && <Row label={w.notes}>{own(terms.notes)}</Row>}
        <Row label={w.seller}>
          {[own(shop?.name), inLanguage(shop?.address, language), shop?.phone, shop?.email]
            .filter(Boolean)
            .map((line) => (
              <span class="line">{line}</span>
            ))}
          {shop?.invoiceNumber && <span class="line">{`${w.invoiceNumber}: ${shop.invoiceNumber}`}</span>}
        </Row>
      </dl>
      <p class="buttons">
        <button type="button" class="primary" id="pay">
          {w.pay}
        </button>
        <button type="button" id="back">
          {w.back}
        </button>
      </p>
    </section>
  );
};

const Paying: FC<{ pageContext: PageContext }> = ({ pageContext: { w } }) => (
  <section id="paying" aria-labelledby="paying-title" hidden>
    <h1 id="paying-title" tabindex={-1}>
      {w.paying}
    </h1>
    <p>{w.payingLead}</p>
    <p id="paying-state" class="status" role="status" />
    <p>
      <a id="to-bank" class="button primary" href="/" hidden>
        {w.goToBank}
      </a>
    </p>
  </section>
);

const Done: FC<{ pageContext: PageContext }> = ({ pageContext: { w } }) => (
  <section id="done" aria-labelledby="done-title" hidden>
    <h1 id="done-title" tabindex={-1}>
      {w.confirmed}
    </h1>
    <p>{w.confirmedLead}</p>
    <p>
      {w.orderNumber}: <strong id="order-id" />
    </p>
    <p class="buttons">
      <a id="to-order" class="button primary" href="/">
        {w.showOrder}
      </a>
      <button type="button" id="buy-more">
        {w.buyMore}
      </button>
    </p>
  </section>
);

export const SalePage: FC<Props & { others: Sale[] }> = ({ pageContext, sale, others }) => (
  <>
    <main id="main" data-sale={sale.id}>
      <Steps pageContext={pageContext} />
      <p id="problem" class="problem" role="alert" hidden />
      <Offer pageContext={pageContext} sale={sale} />
      <Details pageContext={pageContext} sale={sale} />
      <Review pageContext={pageContext} sale={sale} />
      <Paying pageContext={pageContext} />
      <Done pageContext={pageContext} />
    </main>
    {others.length > 0 && (
      <footer>
        <h2>{pageContext.w.otherSales}</h2>
        <ul>
          {others.map((s) => (
            <li>
              <a href={`/s/${s.id}`}>{s.name}</a>
            </li>
          ))}
        </ul>
      </footer>
    )}
  </>
);

export const NoSalePage: FC<{ pageContext: PageContext }> = ({ pageContext: { w } }) => (
  <main id="main">
    <h1>{w.demoShop}</h1>
    <p>{w.noSale}</p>
    <p>
      <a href="/admin">{w.noSaleHow}</a>
    </p>
  </main>
);

export const OrderPage: FC<Props & { orderId: string }> = ({ pageContext: { w }, sale, orderId }) => (
  <main id="main" data-order={orderId}>
    <h1>
      {w.order} <span class="id">{orderId}</span>
    </h1>
    <p id="problem" class="problem" role="alert" hidden />
    <p id="order-state" class="status" role="status">
      {w.orderComing}
    </p>
    <dl class="terms" id="order-facts" />
    <table>
      <caption class="sr">{w.cart}</caption>
      <tbody id="order-lines" />
    </table>
    <p class="buttons">
      <button type="button" id="print">
        {w.print}
      </button>
      <a class="button" href={`/s/${sale.id}`}>
        {w.buyMore}
      </a>
    </p>
  </main>
);
